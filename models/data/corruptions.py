"""Photos changed as cameras, storage and careless clients change them: a decoded RGB photo in, one of the same size out.

Each function does nothing at the strength that its docstring names. The strengths of `SEVERITIES` are those that Hendrycks &
Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (arXiv:1903.12261), published with
their code for ImageNet.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

SEVERITIES: dict[str, tuple[float, ...]] = {
    "blur": (1, 2, 3, 4, 6),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "jpeg": (25, 18, 15, 10, 7),
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
}
"""The strengths of the functions of these names, from severity 1 to 5."""


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """Gaussian blur of this standard deviation in pixels; 0 does nothing."""
    return image.filter(ImageFilter.GaussianBlur(sigma))


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Distances from the mean of each channel times `factor`; 1 does nothing."""
    pixels = np.asarray(image).astype(np.float64)
    mean = pixels.mean((0, 1))
    return _image((pixels - mean) * factor + mean)


def jpeg(image: Image.Image, quality: float) -> Image.Image:
    """Stored as JPEG of this quality (1..100) and read back; there is no strength that does nothing."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(quality))
    return Image.open(file).convert("RGB")


def noise(image: Image.Image, std: float, rng: np.random.Generator) -> Image.Image:
    """Independent Gaussian noise of this standard deviation, of values in 0..1; 0 does nothing."""
    pixels = np.asarray(image)
    return _image(pixels + rng.normal(0, 255 * std, pixels.shape))


def rotation(image: Image.Image, quarter_turns: int) -> Image.Image:
    """Turned counter-clockwise, its sides exchanged by odd numbers; 0 does nothing."""
    return Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(image), quarter_turns)))


def greyscale(image: Image.Image) -> Image.Image:
    """Luma (ITU-R 601-2) in all three channels; does nothing to a grey photo."""
    return image.convert("L").convert("RGB")


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """All values times `factor`; 1 does nothing."""
    return _image(np.asarray(image).astype(np.float64) * factor)


def low_resolution(image: Image.Image, side: int) -> Image.Image:
    """Reduced to `side` x `side` pixels and enlarged again, both bilinear; does nothing to a photo of that size."""
    return image.resize((side, side), Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)


def _image(pixels: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
