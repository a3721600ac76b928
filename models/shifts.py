"""Inputs that differ from those of training: evaluation data of a model in, the same changed, and foreign ones, as batches out.

There are two groups of shifts, so that what was chosen is never judged by what it was chosen on: whatever can be chosen (the score
of an input, its parameters, thresholds) was chosen on shifts of group 1, and is reported on group 2.

    group 1   photos: blur, contrast, JPEG, noise at 5 severities; texts: out-of-scope queries kept for choices
    group 2   photos: turned, grey, bright or dark, of low resolution, preprocessed wrongly; texts: the other out-of-scope queries;
              and the sets of an archive
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.artifact import Artifact, DataType
from models.data import clinc150, corruptions, imagenette
from models.data.archive import ArchivedFile, decode_photo
from models.data.batch import Batch
from models.data.shift_sets import read_photo_sets, read_text_sets
from models.evaluation import text_batches
from models.preprocessing import ImagePreprocessing, TextPreprocessing

_SEED = 0
_ANGLES = (1, 2, 3)  # quarter turns
_BRIGHTNESS = (0.5, 1.6)
_LOW_RESOLUTION = 32
_SEVERITY_SHARE = 4  # each of the 20 shifts of group 1 has this part of the inputs that one of group 2 has

_Input = TypeVar("_Input")
PhotoChange = Callable[[Image.Image, np.random.Generator], Image.Image]
PixelChange = Callable[[NDArray[np.uint8], ImagePreprocessing], NDArray[np.float32]]


@dataclass(frozen=True)
class Shift:
    """A kind of changed or foreign inputs.

    Attributes:
        name: unique among the shifts of a model.
        group: 1 or 2.
        wrong_preprocessing: whether the inputs are right and their preprocessing is not.
        batches: its inputs; made anew by every call, always the same. Labels are -1.
    """

    name: str
    group: int
    wrong_preprocessing: bool
    batches: Callable[[], Iterator[Batch]]


def shifts_of(artifact: Artifact, archive: Path | None, sets: Path | None, count: int, batch_size: int) -> list[Shift]:
    """The shifts of a model of photos or texts, group 1 first.

    Args:
        artifact: whose labels are those of the data set.
        archive: of its data set; the official one is downloaded without it.
        sets: archive of foreign inputs (`models/data/shift_sets.py`); without it there are none.
        count: most inputs of a shift of group 2; each severity of group 1 has a quarter.
        batch_size: of the batches; a model without a batch axis has one input in each.

    Raises:
        DownloadError: the official archive cannot be fetched.
        ValueError: an archive is not what it should be, or the model takes tensors only.
    """
    preprocessing = artifact.manifest.preprocessing
    if isinstance(preprocessing, ImagePreprocessing):
        return _photo_shifts(artifact, preprocessing, archive, sets, count, batch_size)
    if isinstance(preprocessing, TextPreprocessing):
        return _text_shifts(artifact, preprocessing, archive, sets, count, batch_size)
    raise ValueError(f"{artifact.manifest.name} takes tensors only; only models of photos and texts can be evaluated")


def _some(inputs: Sequence[_Input], count: int, number: int) -> list[_Input]:
    """At most `count` of them, by a seed that belongs to shift `number`."""
    return [inputs[i] for i in np.random.default_rng((_SEED, number)).permutation(len(inputs))[:count]]


# --- photos ---


def _photo_shifts(
    artifact: Artifact,
    preprocessing: ImagePreprocessing,
    archive: Path | None,
    sets: Path | None,
    count: int,
    batch_size: int,
) -> list[Shift]:
    dtype, batch_size = artifact.manifest.inputs[0].dtype, batch_size if artifact.manifest.batched else 1
    files = [file for file, _ in imagenette.read_split("val", archive)]
    shifts: list[Shift] = []

    def add(name: str, group: int, change: PhotoChange = _unchanged, prepare: PixelChange | None = None) -> None:
        number = len(shifts)
        some = max(1, count // _SEVERITY_SHARE) if group == 1 else count
        chosen = _some(files, some, number)
        batches = partial(_photo_batches, chosen, number, change, prepare or _as_served, preprocessing, dtype, batch_size)
        shifts.append(Shift(name, group, prepare is not None, batches))

    for kind, strengths in corruptions.SEVERITIES.items():
        for severity, strength in enumerate(strengths, start=1):
            add(f"{kind} {severity}", 1, _severe(kind, strength))
    add("rotation", 2, lambda image, rng: corruptions.rotation(image, int(rng.choice(_ANGLES))))
    add("greyscale", 2, lambda image, _: corruptions.greyscale(image))
    add("brightness", 2, lambda image, rng: corruptions.brightness(image, float(rng.choice(_BRIGHTNESS))))
    add("low resolution", 2, lambda image, _: corruptions.low_resolution(image, _LOW_RESOLUTION))
    add("BGR", 2, prepare=bgr)
    add("not normalized", 2, prepare=not_normalized)
    add("0..255", 2, prepare=unscaled)
    for name, photos in (read_photo_sets(sets) if sets else {}).items():
        chosen = _some(photos, count, len(shifts))
        batches = partial(_photo_batches, chosen, len(shifts), _unchanged, _as_served, preprocessing, dtype, batch_size)
        shifts.append(Shift(name, 2, False, batches))
    return shifts


def _severe(kind: str, strength: float) -> PhotoChange:
    if kind == "noise":
        return lambda image, rng: corruptions.noise(image, strength, rng)
    change: Callable[[Image.Image, float], Image.Image] = getattr(corruptions, kind)
    return lambda image, _: change(image, strength)


def _unchanged(image: Image.Image, _: np.random.Generator) -> Image.Image:
    return image


def _as_served(pixels: NDArray[np.uint8], preprocessing: ImagePreprocessing) -> NDArray[np.float32]:
    return preprocessing.normalize(pixels)


def bgr(pixels: NDArray[np.uint8], preprocessing: ImagePreprocessing) -> NDArray[np.float32]:
    """(H, W, 3) RGB -> (3, H, W): normalized as if blue were red, as by a client that reads photos with OpenCV."""
    return preprocessing.normalize(pixels[..., ::-1])


def not_normalized(pixels: NDArray[np.uint8], preprocessing: ImagePreprocessing) -> NDArray[np.float32]:
    """(H, W, 3) -> (3, H, W) in 0..1: without mean and std."""
    return unscaled(pixels, preprocessing) / np.float32(255)


def unscaled(pixels: NDArray[np.uint8], _: ImagePreprocessing) -> NDArray[np.float32]:
    """(H, W, 3) -> (3, H, W) in 0..255: the bytes as they are."""
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)).astype(np.float32)


def _photo_batches(
    files: list[ArchivedFile],
    number: int,
    change: PhotoChange,
    prepare: PixelChange,
    preprocessing: ImagePreprocessing,
    dtype: DataType,
    batch_size: int,
) -> Iterator[Batch]:
    for start in range(0, len(files), batch_size):
        chosen = range(start, min(start + batch_size, len(files)))
        changed = [change(decode_photo(files[i]), np.random.default_rng((_SEED, number, i))) for i in chosen]
        images = [prepare(np.asarray(preprocessing.geometry(image)), preprocessing) for image in changed]
        yield (np.stack(images).astype(dtype, copy=False),), np.full(len(images), -1)


# --- texts ---


def _text_shifts(
    artifact: Artifact,
    preprocessing: TextPreprocessing,
    archive: Path | None,
    sets: Path | None,
    count: int,
    batch_size: int,
) -> list[Shift]:
    tokenizer = preprocessing.load_tokenizer(artifact.folder)
    texts = [
        ("oos_val", 1, clinc150.load_queries("oos_val", archive).texts),
        ("oos_test", 2, clinc150.load_queries("oos_test", archive).texts),
        *((name, 2, lines) for name, lines in (read_text_sets(sets) if sets else {}).items()),
    ]

    def batches(texts: list[str]) -> Iterator[Batch]:
        queries = clinc150.Queries(texts, ["oos"] * len(texts))
        tokenized = clinc150.tokenize(queries, tokenizer, artifact.manifest.labels, preprocessing.max_length)
        return text_batches(artifact.manifest, tokenized, batch_size)

    return [
        Shift(name, group, False, partial(batches, _some(lines, count, number)))
        for number, (name, group, lines) in enumerate(texts)
    ]
