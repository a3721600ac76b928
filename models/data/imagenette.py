"""Imagenette: the official archive in, batches of photos out. Seeded: a batch depends on (seed, epoch, position) and nothing else.

Imagenette is 10 easily told classes of ImageNet (https://github.com/fastai/imagenette). `train` is split once, by a fixed seed,
into what is trained on and `SELECTION_COUNT` photos kept for choices (weights, image size); `val` is only ever evaluated.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.archive import ArchivedFile, decode_photo, read_files
from models.data.batch import Batch
from models.data.download import OfficialArchive, fetch
from models.preprocessing import ImagePreprocessing

OFFICIAL = OfficialArchive(
    url="https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
    sha256="569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c",
)

CLASSES: dict[str, str] = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""WordNet id -> label, in the order of the model's outputs."""

SELECTION_COUNT = 1000
SELECTION_SEED = 0
_STORED_SIDE = 256  # photos are kept in memory with the shorter side at most this: about 2 GB
_MIN_CROP_AREA = 0.35
_CROP_RATIO = (3 / 4, 4 / 3)

Split = Literal["train", "selection", "val"]


@dataclass(frozen=True)
class Photos:
    """One split in memory: decoded RGB images and their class indices int64 (n,)."""

    images: list[Image.Image]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


def load_photos(split: Split, archive: Path | None = None) -> Photos:
    """Decodes one split of the archive (the official one is downloaded where no path is given).

    Raises:
        DownloadError: the official archive cannot be fetched.
        ValueError: the archive holds no photo of this split in the official layout.
    """
    encoded = read_split(split, archive)
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(_decode_for_storage, (file for file, _ in encoded)))
    return Photos(images, np.array([label for _, label in encoded], dtype=np.int64))


def read_split(split: Split, archive: Path | None = None) -> list[tuple[ArchivedFile, int]]:
    """The encoded files of one split with their class indices, in the order of their names."""
    path = archive or fetch(OFFICIAL)
    folder = "val" if split == "val" else "train"
    order = {wnid: i for i, wnid in enumerate(CLASSES)}
    remedy = f"expected {OFFICIAL.url}"
    found = read_files(path, lambda file: file.parts[-3:-2] == (folder,) and file.parts[-2] in order, remedy)
    files = {"/".join(file.path.parts[-2:]): (file, order[file.path.parts[-2]]) for file in found}
    if not files:
        raise ValueError(f"{path} has no {folder}/<wnid>/*.JPEG; expected the layout of {OFFICIAL.url}")
    names = sorted(files)
    if split != "val":
        shuffled = np.random.default_rng(SELECTION_SEED).permutation(len(names))
        kept = set(shuffled[:SELECTION_COUNT].tolist())
        names = [name for i, name in enumerate(names) if (i in kept) == (split == "selection")]
    return [files[name] for name in names]


def _decode_for_storage(file: ArchivedFile) -> Image.Image:
    image = decode_photo(file)
    scale = _STORED_SIDE / min(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return image


def random_resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random part of the photo (Szegedy et al. 2014, arXiv:1409.4842, section 6), mirrored half the time: (size, size, 3)."""
    width, height = image.size
    box = (0.0, 0.0, float(width), float(height))
    for _ in range(10):
        area = width * height * rng.uniform(_MIN_CROP_AREA, 1)
        ratio = np.exp(rng.uniform(*np.log(_CROP_RATIO)))
        w, h = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            box = (left, top, left + w, top + h)
            break
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


@dataclass(frozen=True)
class ImagenetteTraining:
    """The batches that `models.training.Trainer` asks for."""

    train: Photos
    selection: Photos
    preprocessing: ImagePreprocessing
    seed: int

    def __len__(self) -> int:
        return len(self.train)

    def batches(self, epoch: int, batch_size: int, image_size: int) -> Iterator[Batch]:
        """One epoch of ((images float32 (B, 3, S, S),), labels int64 (B,)); the incomplete last batch is left out."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.train))
        starts = range(0, len(order) - batch_size + 1, batch_size)
        if not starts:
            return

        def load(start: int) -> Batch:
            chosen = order[start : start + batch_size]
            rng = np.random.default_rng((self.seed, epoch, start))
            pixels = np.stack([random_resized_crop(self.train.images[i], image_size, rng) for i in chosen])
            return (self.preprocessing.normalize(pixels),), self.train.labels[chosen]

        with ThreadPoolExecutor(1) as pool:  # Pillow frees the interpreter: the next batch is made while one trains
            following = pool.submit(load, starts[0])
            for start in starts[1:]:
                current, following = following.result(), pool.submit(load, start)
                yield current
            yield following.result()

    def selection_batches(self, batch_size: int, image_size: int) -> Iterator[Batch]:
        """The selection photos once, prepared as the service would at this image size."""
        yield from evaluation_batches(self.selection, at_size(self.preprocessing, image_size), batch_size)


def at_size(preprocessing: ImagePreprocessing, image_size: int) -> ImagePreprocessing:
    """The same preprocessing with another crop, the ratio of `resize` to `crop` kept."""
    resize = round(preprocessing.resize * image_size / preprocessing.crop)
    return preprocessing.model_copy(update={"crop": image_size, "resize": resize})


def evaluation_batches(photos: Photos, preprocessing: ImagePreprocessing, batch_size: int) -> Iterator[Batch]:
    """All photos in order: ((images float32 (B, 3, crop, crop),), labels int64 (B,))."""
    for start in range(0, len(photos), batch_size):
        images = np.stack([preprocessing.apply(image) for image in photos.images[start : start + batch_size]])
        yield (images,), photos.labels[start : start + batch_size]


def served_batches(files: list[tuple[ArchivedFile, int]], preprocessing: ImagePreprocessing, batch_size: int) -> Iterator[Batch]:
    """The encoded photos of `read_split` in order, prepared exactly as the service prepares them."""
    for start in range(0, len(files), batch_size):
        chosen = files[start : start + batch_size]
        images = np.stack([preprocessing.apply(decode_photo(file)) for file, _ in chosen])
        yield (images,), np.array([label for _, label in chosen], dtype=np.int64)
