"""A small archive of photos in the official layout of Imagenette."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from models.data import imagenette


def write_archive(path: Path, counts: Mapping[str, int], side: int) -> Path:
    """Photos of one random colour each: of every class as many as `counts` says for each split, `train` and `val`."""
    rng = np.random.default_rng(3)
    with tarfile.open(path, "w") as tar:
        for wnid in imagenette.CLASSES:
            for i, split in enumerate(split for split, count in counts.items() for _ in range(count)):
                file = io.BytesIO()
                Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist())).save(file, "JPEG")
                member = tarfile.TarInfo(f"imagenette2-320/{split}/{wnid}/{i}.JPEG")
                member.size = len(file.getvalue())
                tar.addfile(member, io.BytesIO(file.getvalue()))
    return path
