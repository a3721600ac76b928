"""Bytes or text in, model inputs out: the one preprocessing of training, evaluation and service.

It must not know torch, HTTP or ONNX. `ImagePreprocessing` and `TextPreprocessing` are stored in the manifest of an artifact, so
that a model is always fed the way it was evaluated.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""The only decoders that input may reach: every further one is attack surface."""

DEFAULT_MAX_PIXELS = 50_000_000
_MAX_CHARACTERS_PER_TOKEN = 200
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, of the whole process; `decode_image` checks before it decodes


class InvalidInputError(ValueError):
    """An input that cannot be turned into model inputs: what is wrong, the value, the limit and the remedy."""

    def __init__(self, problem: str, *, value: object, limit: object, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.value, self.limit, self.remedy = value, limit, remedy


class UnsupportedFormatError(InvalidInputError):
    """The bytes are an image, or something else, that none of the allowed decoders reads."""


def decode_image(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decodes one image as a person sees it: upright, RGB, 8 bits, transparency over white, the first frame of an animation.

    Raises:
        UnsupportedFormatError: not one of `IMAGE_FORMATS`, judged by content.
        InvalidInputError: more than `max_pixels` pixels by its header (nothing is decoded then), or broken or truncated data.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except Exception:  # Pillow raises many types for broken headers
        raise UnsupportedFormatError(
            f"the {len(data)} bytes are not an image that can be read",
            value=f"starts with {data[:8].hex()}",
            limit=", ".join(IMAGE_FORMATS),
            remedy="send a whole image file of one of these formats",
        ) from None
    width, height = image.size
    if width * height > max_pixels:
        raise InvalidInputError(
            f"the image has {width} x {height} pixels",
            value=width * height,
            limit=max_pixels,
            remedy="send a smaller image",
        )
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except Exception as error:  # and many more for broken data
        raise InvalidInputError(
            f"the {image.format} image is truncated or broken ({error})",
            value=f"{len(data)} bytes",
            limit="a complete file",
            remedy="send the whole file",
        ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):  # 16 bits of grey: keep the high byte instead of clipping
        values = np.asarray(image).astype(np.int64)
        grey = np.clip(values >> 8, 0, 255).astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


class ImagePreprocessing(BaseModel):
    """Shorter side to `resize`, the middle `crop` x `crop`, scaled to 0..1, normalized by channel."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"example": {"kind": "image", "resize": 128, "crop": 128}}
    )

    kind: Literal["image"] = "image"
    resize: int = Field(gt=0, description="length of the shorter side after resizing, in pixels")
    crop: int = Field(gt=0, description="side of the square cut from the middle, in pixels")
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = Field(default=(0.485, 0.456, 0.406), description="RGB, of values in 0..1")
    std: tuple[float, float, float] = Field(default=(0.229, 0.224, 0.225), description="RGB, of values in 0..1")

    @model_validator(mode="after")
    def _crop_lies_inside(self) -> Self:
        if self.resize < self.crop:
            raise ValueError(f"resize {self.resize} is smaller than crop {self.crop}; the crop must lie inside")
        return self

    def geometry(self, image: Image.Image) -> Image.Image:
        """Resizes and crops an RGB image to (crop, crop)."""
        resample = Image.Resampling.BILINEAR if self.interpolation == "bilinear" else Image.Resampling.BICUBIC
        width, height = image.size
        side = min(width, height)
        size = (width * self.resize // side, height * self.resize // side)
        if max(size) > self.crop * 64:  # a 1 x 100000 strip would become gigabytes: cut the middle out first
            image = ImageOps.fit(image, (side, side), method=Image.Resampling.NEAREST)
            size = (self.resize, self.resize)
        if size != image.size:
            image = image.resize(size, resample)
        left = round((size[0] - self.crop) / 2)
        top = round((size[1] - self.crop) / 2)
        return image.crop((left, top, left + self.crop, top + self.crop))

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(..., H, W, 3) uint8 -> (..., 3, H, W) float32: (value / 255 - mean) / std for each channel."""
        mean, std = np.array([self.mean, self.std], np.float32)
        scale, shift = np.float32(1) / (np.float32(255) * std), -mean / std
        # plane by plane: over triples of channels numpy takes six times as long
        planes = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
        planes *= scale[:, None, None]
        planes += shift[:, None, None]
        return planes

    def apply(self, image: Image.Image) -> NDArray[np.float32]:
        """An RGB image -> float32 (3, crop, crop)."""
        return self.normalize(np.asarray(self.geometry(image)))


class TextPreprocessing(BaseModel):
    """Text to token ids by the tokenizer that lies in the artifact, cut at `max_length` tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"example": {"kind": "text", "max_length": 64}})

    kind: Literal["text"] = "text"
    tokenizer: str = Field(
        default="tokenizer.json", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="file in the artifact folder"
    )
    max_length: int = Field(gt=0, description="tokens, special tokens included")

    def load_tokenizer(self, folder: Path) -> Tokenizer:
        """The tokenizer of an artifact folder, without truncation or padding: both are done here, where they can be reported."""
        tokenizer = Tokenizer.from_file(str(folder / self.tokenizer))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def encode_text(tokenizer: Tokenizer, text: str, max_length: int) -> tuple[NDArray[np.int64], bool]:
    """One text -> (token ids int64 (L,), L <= max_length, and whether any of the text was cut off).

    Raises:
        InvalidInputError: the text holds nothing that becomes a token.
    """
    (encoded,) = encode_texts(tokenizer, [text], max_length)
    if isinstance(encoded, InvalidInputError):
        raise encoded
    return encoded


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], max_length: int
) -> list[tuple[NDArray[np.int64], bool] | InvalidInputError]:
    """Many texts at once, each as by `encode_text`; one that holds nothing gives its error and does not disturb the others."""
    # tokenizing the megabytes that will be cut off anyway would only take time
    heads = [text[: max_length * _MAX_CHARACTERS_PER_TOKEN] for text in texts]
    encoded: list[tuple[NDArray[np.int64], bool] | InvalidInputError] = []
    # encode_batch leaves the interpreter to other threads; the fast form leaves out the offsets, which nobody reads
    for text, head, encoding in zip(texts, heads, tokenizer.encode_batch_fast(heads), strict=True):
        if all(encoding.special_tokens_mask):
            encoded.append(
                InvalidInputError("the text is empty or blank", value=text, limit="at least one word", remedy="send a sentence")
            )
        else:
            ids = encoding.ids
            cut = len(ids) > max_length or len(head) < len(text)
            encoded.append((np.array(ids[:max_length], dtype=np.int64), cut))
    return encoded


def pad_tokens(rows: list[NDArray[np.int64]], pad_id: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of ids of different length -> (input_ids, attention_mask), both int64 (N, L); the mask is 1 at real tokens."""
    length = max(len(row) for row in rows)
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask
