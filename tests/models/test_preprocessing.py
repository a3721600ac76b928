import io
import resource
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from models.data.clinc150 import train_tokenizer
from models.preprocessing import (
    DEFAULT_MAX_PIXELS,
    IMAGE_FORMATS,
    ImagePreprocessing,
    InvalidInputError,
    TextPreprocessing,
    UnsupportedFormatError,
    decode_image,
    encode_text,
    pad_tokens,
)

_RED, _GREEN, _BLUE, _WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
_STANDARD = ImagePreprocessing(resize=256, crop=224)


def _encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, depth: int, color: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of raw rows, for what Pillow does not write: any depth and color type, or a header that lies."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _row(image: Image.Image) -> list[tuple[int, int, int]]:
    """The pixels of the first row."""
    return [(int(r), int(g), int(b)) for r, g, b in np.asarray(image)[0]]


def _quadrants() -> NDArray[np.uint8]:
    """32 x 16 pixels in four colors, in blocks that JPEG keeps."""
    corners = np.array([[_RED, _GREEN], [_BLUE, (200, 100, 50)]], dtype=np.uint8)
    return corners.repeat(8, 0).repeat(16, 1)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: np.rot90(a, 2)),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
@pytest.mark.parametrize(("image_format", "options"), [("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {})])
def test_photos_are_turned_upright(orientation: int, upright: Any, image_format: str, options: dict[str, Any]) -> None:
    """All eight EXIF orientations are undone, in JPEG (within 4 of 255) and PNG alike."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(_encoded(Image.fromarray(_quadrants()), image_format, exif=exif, **options))
    expected = upright(_quadrants()).astype(int)
    actual = np.asarray(image).astype(int)
    assert actual.shape == expected.shape
    assert abs(actual - expected).max() <= (4 if image_format == "JPEG" else 0)


@pytest.mark.parametrize("exif", [b"Exif\x00\x00nonsense", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff", b""])
def test_broken_exif_does_not_spoil_a_photo(exif: bytes) -> None:
    """A photo whose metadata is broken is still a photo; it counts as upright."""
    assert decode_image(_encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (8, 4)


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_every_allowed_format_is_decoded(image_format: str) -> None:
    """RGB, 8 bits, the size and (within 4 of 255) the color that was stored."""
    image = decode_image(_encoded(Image.new("RGB", (24, 16), (200, 100, 50)), image_format))
    assert (image.mode, image.size) == ("RGB", (24, 16))
    assert abs(np.asarray(image).astype(int) - (200, 100, 50)).max() <= 4


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_transparency_lies_over_white(image_format: str) -> None:
    """RGBA: what is transparent becomes white, half transparent red becomes pink."""
    image = Image.new("RGBA", (3, 1))
    for x, color in enumerate([(255, 0, 0, 255), (255, 0, 0, 128), (0, 0, 0, 0)]):
        image.putpixel((x, 0), color)
    assert _row(decode_image(_encoded(image, image_format, lossless=True))) == [_RED, (255, 127, 127), _WHITE]


@pytest.mark.parametrize(
    ("image_format", "transparency", "expected"),
    [
        ("PNG", 0, [_WHITE, _GREEN]),
        ("GIF", 0, [_WHITE, _GREEN]),
        ("PNG", bytes([128, 255]), [(255, 127, 127), _GREEN]),
        ("PNG", None, [_RED, _GREEN]),
    ],
)
def test_transparent_palette_entries_lie_over_white(
    image_format: str, transparency: int | bytes | None, expected: list[tuple[int, int, int]]
) -> None:
    """Palettes with one transparent entry, or with an opacity for each."""
    image = Image.new("P", (2, 1))
    image.putpalette([*_RED, *_GREEN])
    image.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    assert _row(decode_image(_encoded(image, image_format, **options))) == expected


def test_grey_becomes_three_equal_channels() -> None:
    """L stays as it is, LA lies over white."""
    assert _row(decode_image(_encoded(Image.new("L", (1, 1), 77), "PNG"))) == [(77, 77, 77)]
    assert _row(decode_image(_encoded(Image.new("LA", (1, 1), (77, 255)), "PNG"))) == [(77, 77, 77)]
    assert _row(decode_image(_encoded(Image.new("LA", (1, 1), (77, 0)), "PNG"))) == [_WHITE]
    assert _row(decode_image(_encoded(Image.new("LA", (1, 1), (0, 128)), "PNG"))) == [(127, 127, 127)]


@pytest.mark.parametrize(
    ("depth", "color", "transparent", "opaque"),
    [(8, 0, b"\x0a", b"\xc8"), (8, 2, b"\x01\x02\x03", b"\xc8\xc8\xc8"), (16, 0, b"\x03\xe8", b"\xc8\x00")],
    ids=["grey", "rgb", "grey16"],
)
def test_a_transparent_color_becomes_white(depth: int, color: int, transparent: bytes, opaque: bytes) -> None:
    """PNG may declare one grey or one color transparent (tRNS), at 8 and at 16 bits."""
    values = transparent if depth == 16 else b"".join(b"\x00" + transparent[i : i + 1] for i in range(len(transparent)))
    data = _png(2, 1, depth, color, b"\x00" + transparent + opaque, _chunk(b"tRNS", values))
    assert _row(decode_image(data)) == [_WHITE, (200, 200, 200)]


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (255, 0), (256, 1), (32768, 128), (65535, 255)])
def test_16_bits_of_grey_keep_their_high_byte(value: int, expected: int) -> None:
    """A depth map or X-ray is scaled to 8 bits, not clipped to white."""
    assert _row(decode_image(_encoded(Image.new("I;16", (1, 1), value), "PNG"))) == [(expected,) * 3]


def test_16_bits_of_color_keep_their_high_bytes() -> None:
    """RGB at 16 bits for each channel."""
    data = _png(1, 1, 16, 2, b"\x00" + struct.pack(">HHH", 0, 32768, 65535))
    assert _row(decode_image(data)) == [(0, 128, 255)]


def test_one_bit_becomes_black_and_white() -> None:
    """A scan in mode 1."""
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert _row(decode_image(_encoded(image, "PNG"))) == [(0, 0, 0), _WHITE]


@pytest.mark.parametrize(("ink", "expected"), [((0, 255, 255, 0), _RED), ((255, 0, 255, 0), _GREEN), ((0, 0, 0, 255), (0, 0, 0))])
def test_cmyk_jpeg_shows_its_colors(ink: tuple[int, int, int, int], expected: tuple[int, int, int]) -> None:
    """Print files are converted (within 6 of 255), and not inverted."""
    image = decode_image(_encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100))
    assert image.mode == "RGB"
    assert abs(np.asarray(image).astype(int) - expected).max() <= 6


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(image_format: str) -> None:
    """Of red then blue, red is seen."""
    frames = [Image.new("RGB", (6, 4), color) for color in (_RED, _BLUE)]
    options = {"lossless": True} if image_format == "WEBP" else {}
    image = decode_image(_encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options))
    assert image.size == (6, 4)
    assert (np.asarray(image) == _RED).all()


@pytest.mark.parametrize("image_format", ["TIFF", "ICO", "PPM", "TGA", "PCX", "JPEG2000"])
def test_other_decoders_are_not_reached(image_format: str) -> None:
    """A format outside the list is refused by its content, although Pillow could read it."""
    data = _encoded(Image.new("RGB", (16, 16), _RED), image_format)
    with pytest.raises(UnsupportedFormatError) as caught:
        decode_image(data)
    assert caught.value.limit == "JPEG, PNG, WEBP, BMP, GIF"


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"%PDF-1.7 " * 20])
def test_what_is_no_image_is_refused_with_the_choices(data: bytes) -> None:
    """The error says how many bytes came, how they start, what is read and what to do."""
    with pytest.raises(UnsupportedFormatError, match=f"the {len(data)} bytes are not an image") as caught:
        decode_image(data)
    assert caught.value.value == f"starts with {data[:8].hex()}"
    assert caught.value.limit == ", ".join(IMAGE_FORMATS)
    assert caught.value.remedy in str(caught.value)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "GIF"])
def test_a_truncated_image_is_not_shown_half(image_format: str, part: float) -> None:
    """An upload that broke off is an error which names the format and the remedy, not a photo with a grey half."""
    data = _encoded(_noise(64, 64), image_format)
    cut = data[: int(len(data) * part)]
    with pytest.raises(InvalidInputError, match=f"the {image_format} image is truncated or broken") as caught:
        decode_image(cut)
    assert type(caught.value) is InvalidInputError
    assert (caught.value.value, caught.value.limit) == (f"{len(cut)} bytes", "a complete file")
    assert caught.value.remedy == "send the whole file"


def test_a_truncated_webp_is_refused() -> None:
    """Its decoder wants the whole file before it tells the size."""
    data = _encoded(_noise(64, 64), "WEBP")
    with pytest.raises(InvalidInputError):
        decode_image(data[: len(data) // 2])


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_broken_bytes_raise_nothing_else(image_format: str) -> None:
    """Whatever bytes of a file are overwritten, the answer is an RGB image or an `InvalidInputError`."""
    rng = np.random.default_rng(0)
    whole = _encoded(_noise(24, 24), image_format)
    for _ in range(60):
        data = bytearray(whole)
        for position in rng.integers(0, len(data) if rng.random() < 0.5 else 40, 4):
            data[position] = rng.integers(256)
        with suppress(InvalidInputError):
            assert decode_image(bytes(data), max_pixels=1_000_000).mode == "RGB"


def test_too_many_pixels_are_refused_by_the_header() -> None:
    """A file of a few bytes that claims 9000 x 9000 pixels is answered without decoding; the error carries both numbers."""
    bomb = _png(9000, 9000, 8, 2, b"never decoded")
    with pytest.raises(InvalidInputError, match="9000 x 9000 pixels; send a smaller image") as caught:
        decode_image(bomb)
    assert (caught.value.value, caught.value.limit, caught.value.remedy) == (81_000_000, DEFAULT_MAX_PIXELS, "send a smaller image")


def test_absurdly_many_pixels_are_refused_alike() -> None:
    """Beyond Pillow's own limits too, the error is ours and names the pixels."""
    with pytest.raises(InvalidInputError, match="60000 x 60000 pixels") as caught:
        decode_image(_png(60_000, 60_000, 8, 2, b"never decoded"))
    assert caught.value.limit == DEFAULT_MAX_PIXELS


def test_the_pixel_limit_is_inclusive() -> None:
    """An image of exactly the limit is decoded, one more row is not."""
    assert decode_image(_encoded(Image.new("RGB", (10, 10)), "PNG"), max_pixels=100).size == (10, 10)
    with pytest.raises(InvalidInputError) as caught:
        decode_image(_encoded(Image.new("RGB", (10, 11)), "PNG"), max_pixels=100)
    assert (caught.value.value, caught.value.limit) == (110, 100)


def test_without_resizing_the_middle_is_cut_out() -> None:
    """8 x 6 pixels, shorter side 6 already: columns 2 to 5 of rows 1 to 4, untouched."""
    image = _noise(8, 6)
    cropped = ImagePreprocessing(resize=6, crop=4).geometry(image)
    assert np.array_equal(np.asarray(cropped), np.asarray(image)[1:5, 2:6])


def _resized_whole(image: Image.Image) -> NDArray[np.uint8]:
    """torchvision's Resize(256) and CenterCrop(224): the longer side becomes floor(256 long / short)."""
    width, height = (256 * side // min(image.size) for side in image.size)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224)))


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (500, 375), (300, 300), (224, 224), (256, 301)])
def test_shorter_side_to_resize_then_the_middle(size: tuple[int, int]) -> None:
    """As torchvision's Resize(256) and CenterCrop(224), pixel for pixel."""
    image = _noise(*size)
    assert np.array_equal(np.asarray(_STANDARD.geometry(image)), _resized_whole(image))


@pytest.mark.parametrize("size", [(98, 196), (196, 98), (147, 49), (187, 374)])
def test_the_longer_side_keeps_exact_ratios(size: tuple[int, int]) -> None:
    """A photo twice as wide as high becomes 512 x 256, not 511 x 256: no rounding error of a float enters."""
    image = _noise(*size)
    assert np.array_equal(np.asarray(_STANDARD.geometry(image)), _resized_whole(image))


def test_interpolation_is_the_chosen_one() -> None:
    """`bicubic` resizes with Pillow's bicubic filter."""
    image = _noise(100, 100)
    bicubic = ImagePreprocessing(resize=64, crop=64, interpolation="bicubic").geometry(image)
    assert np.array_equal(np.asarray(bicubic), np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)))
    assert not np.array_equal(np.asarray(bicubic), np.asarray(ImagePreprocessing(resize=64, crop=64).geometry(image)))


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (2, 100_000)])
def test_extreme_strips_need_no_large_memory(size: tuple[int, int]) -> None:
    """1 x 5000 pixels, which a naive resize makes 1 GB, give the middle of the strip with less than 100 MB more memory."""
    image = Image.new("RGB", size, _BLUE)
    middle = [side // 2 for side in size]
    image.paste(_RED, (max(middle[0] - 4, 0), max(middle[1] - 4, 0), middle[0] + 4, middle[1] + 4))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = np.asarray(_STANDARD.geometry(image))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 100 * 1024
    assert pixels.shape == (224, 224, 3)
    assert (pixels == _RED).all()


@pytest.mark.parametrize("size", [(100, 5700), (5700, 100)])
def test_strips_look_as_if_they_had_been_resized_whole(size: tuple[int, int]) -> None:
    """The way around the memory changes no pixel by more than rounding."""
    image = _noise(*size)
    assert abs(np.asarray(_STANDARD.geometry(image)).astype(int) - _resized_whole(image).astype(int)).max() <= 1


def test_normalize_is_the_published_formula() -> None:
    """(x / 255 - mean) / std for each channel in float64, within 1e-6; channels first, float32, contiguous."""
    pixels = np.asarray(_noise(9, 7))
    actual = _STANDARD.normalize(pixels)
    expected = (pixels.astype(np.float64) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(actual, expected.transpose(2, 0, 1), atol=1e-6)
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous


def test_normalize_takes_batches_and_other_moments() -> None:
    """(N, H, W, 3) becomes (N, 3, H, W); mean and std are those of the preprocessing."""
    pixels = np.stack([np.asarray(_noise(5, 4, seed)) for seed in (1, 2)])
    centered = ImagePreprocessing(resize=8, crop=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).normalize(pixels)
    np.testing.assert_allclose(centered, pixels.transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)


def test_apply_is_geometry_then_normalize() -> None:
    """One image to float32 (3, crop, crop)."""
    image = _noise(300, 280)
    applied = _STANDARD.apply(image)
    assert applied.dtype == np.float32
    assert applied.shape == (3, 224, 224)
    assert np.array_equal(applied, _STANDARD.normalize(np.asarray(_STANDARD.geometry(image))))


@pytest.mark.parametrize("wrong", [{"resize": 0}, {"crop": -1}, {"interpolation": "nearest"}, {"mean": (0.5,)}, {"colour": "grey"}])
def test_a_preprocessing_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    """A manifest with a wrong or an unknown setting fails when it is read, not at the first request."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ImagePreprocessing.model_validate({"resize": 256, "crop": 224} | wrong)


def test_a_preprocessing_survives_its_manifest() -> None:
    """Written as JSON and read again it is equal."""
    preprocessing = ImagePreprocessing(resize=146, crop=128, interpolation="bicubic", mean=(0.1, 0.2, 0.3))
    assert ImagePreprocessing.model_validate_json(preprocessing.model_dump_json()) == preprocessing
    text = TextPreprocessing(max_length=64)
    assert TextPreprocessing.model_validate_json(text.model_dump_json()) == text


def _tokenizer() -> Tokenizer:
    """Words to ids, [CLS] in front."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "what", "is", "my", "balance"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return tokenizer


@pytest.mark.parametrize(
    ("text", "max_length", "expected", "truncated"),
    [
        ("what is my balance", 8, [2, 3, 4, 5, 6], False),
        ("what is my balance", 5, [2, 3, 4, 5, 6], False),
        ("what is my balance", 4, [2, 3, 4, 5], True),
        ("what is my balance", 1, [2], True),
        ("what is love", 8, [2, 3, 4, 1], False),
    ],
)
def test_text_is_cut_and_the_cut_is_told(text: str, max_length: int, expected: list[int], truncated: bool) -> None:
    """Ids of at most `max_length` tokens, [CLS] included, and whether any were lost."""
    ids, was_cut = encode_text(_tokenizer(), text, max_length)
    assert (ids.tolist(), was_cut) == (expected, truncated)
    assert ids.dtype == np.int64


@pytest.mark.parametrize("text", ["", "  \n", "\u200b"])
def test_text_without_a_token_is_refused(text: str) -> None:
    """Nothing to read is an error, not a prediction about [CLS] alone."""
    tokenizer = train_tokenizer(["what is my balance"], 50)
    with pytest.raises(InvalidInputError, match="empty or blank"):
        encode_text(tokenizer, text, 8)


def test_text_far_beyond_the_limit_is_not_even_tokenized() -> None:
    """A megabyte of text is cut before tokenizing, and told to be cut even where its head is one long word."""
    ids, was_cut = encode_text(_tokenizer(), "a" * 1_000_000, 8)
    assert (ids.tolist(), was_cut) == ([2, 1], True)


def test_the_tokenizer_of_an_artifact_neither_cuts_nor_pads(tmp_path: Path) -> None:
    """What a tokenizer file says about truncation and padding is ignored: otherwise a cut could not be told."""
    tokenizer = _tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / "words.json"))
    preprocessing = TextPreprocessing(tokenizer="words.json", max_length=4)
    ids, was_cut = encode_text(preprocessing.load_tokenizer(tmp_path), "what is my balance", preprocessing.max_length)
    assert (ids.tolist(), was_cut) == ([2, 3, 4, 5], True)


def test_rows_are_padded_to_the_longest() -> None:
    """The mask is 1 at real tokens, also where a real token has the id of the padding."""
    rows = [np.array(row, dtype=np.int64) for row in ([2, 3, 0], [2], [2, 7])]
    ids, mask = pad_tokens(rows, pad_id=9)
    assert ids.tolist() == [[2, 3, 0], [2, 9, 9], [2, 7, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert ids.dtype == mask.dtype == np.int64
    assert pad_tokens(rows[1:])[0].tolist() == [[2, 0], [2, 7]]
