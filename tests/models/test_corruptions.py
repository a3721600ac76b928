"""Changed photos: of the same kind and size, by known amounts, and not at all at the strength that does nothing."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.data import corruptions

_RNG = np.random.default_rng


def photo(height: int = 20, width: int = 24) -> Image.Image:
    """Random pixels."""
    return Image.fromarray(_RNG(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> NDArray[np.float64]:
    """Of a photo, (H, W, 3)."""
    return np.asarray(image).astype(np.float64)


def noise(image: Image.Image, std: float) -> Image.Image:
    """Of one seed."""
    return corruptions.noise(image, std, _RNG(0))


CHANGES: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "blur": corruptions.blur,
    "contrast": corruptions.contrast,
    "jpeg": corruptions.jpeg,
    "noise": noise,
}


@pytest.mark.parametrize("kind", corruptions.SEVERITIES)
def test_severities_change_a_photo_more_and_more(kind: str) -> None:
    """Five RGB photos of the same size, each farther from the original than the one before."""
    original = photo().resize((64, 60))  # with less detail than random pixels, as photos have
    changed = [CHANGES[kind](original, strength) for strength in corruptions.SEVERITIES[kind]]
    assert [(image.mode, image.size) for image in changed] == [("RGB", (64, 60))] * 5
    distances = [np.abs(pixels(image) - pixels(original)).mean() for image in changed]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_strength_that_does_nothing() -> None:
    """Each function gives the photo back at the strength that its docstring names."""
    grey, square = photo().convert("L").convert("RGB"), photo(24, 24)
    for original, changed in (
        (photo(), corruptions.blur(photo(), 0)),
        (photo(), corruptions.contrast(photo(), 1)),
        (photo(), noise(photo(), 0)),
        (photo(), corruptions.rotation(photo(), 0)),
        (photo(), corruptions.brightness(photo(), 1)),
        (grey, corruptions.greyscale(grey)),
        (square, corruptions.low_resolution(square, 24)),
    ):
        np.testing.assert_array_equal(pixels(changed), pixels(original))


def test_amounts() -> None:
    """Contrast shrinks distances from the mean, brightness the values, noise has its deviation, by as much as rounding allows."""
    x = pixels(photo())
    mean = x.mean((0, 1))
    np.testing.assert_allclose(pixels(corruptions.contrast(photo(), 0.3)), mean + 0.3 * (x - mean), atol=0.5)
    np.testing.assert_allclose(pixels(corruptions.brightness(photo(), 0.5)), x / 2, atol=0.5)
    np.testing.assert_allclose(pixels(corruptions.brightness(photo(), 2)), np.minimum(2 * x, 255), atol=0.5)
    grey = Image.new("RGB", (100, 100), (128, 128, 128))
    assert pixels(noise(grey, 0.1)).std() == pytest.approx(25.5, rel=0.02)


def test_noise_is_seeded() -> None:
    """The same generator gives the same photo, another one another."""
    first, second, other = (pixels(corruptions.noise(photo(), 0.1, _RNG(seed))) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_geometry_and_colour() -> None:
    """A quarter turn is numpy's, grey has equal channels, low resolution of a checkerboard is its mean."""
    np.testing.assert_array_equal(pixels(corruptions.rotation(photo(), 1)), np.rot90(pixels(photo())))
    grey = pixels(corruptions.greyscale(photo()))
    np.testing.assert_array_equal(grey, grey[..., :1].repeat(3, axis=2))
    np.testing.assert_allclose(grey[..., 0], pixels(photo()) @ [0.299, 0.587, 0.114], atol=1)
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    np.testing.assert_allclose(pixels(corruptions.low_resolution(board, 16)), 127.5, atol=12)
