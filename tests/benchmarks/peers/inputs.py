"""What the load consists of: several hundred texts and several photos, real ones where the environment names local files."""

import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from models.data.clinc150 import load_queries
from models.data.imagenette import read_split
from tests.benchmarks.peers.classifier import SHIPPED

_TEXTS = 512
_PHOTOS = 16


def texts() -> list[str]:
    """Queries of CLINC150's test split (NORMSCOPE_CLINC150), else 2 to 28 random words of the tokenizer's vocabulary."""
    if path := os.environ.get("NORMSCOPE_CLINC150"):
        queries = load_queries("test", Path(path)).texts
        return queries[:: len(queries) // _TEXTS][:_TEXTS]  # spread over all intents
    vocabulary = json.loads((SHIPPED / "encoder" / "1" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha())
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(5, 1.8, _TEXTS), 2, 28).astype(int)  # like the queries: 9 words in the middle, few long ones
    return [" ".join(rng.choice(words, length)) for length in lengths]


def photos() -> list[bytes]:
    """JPEG files of Imagenette's evaluation split (NORMSCOPE_IMAGENETTE, the archive), else generated ones of the same size."""
    if path := os.environ.get("NORMSCOPE_IMAGENETTE"):
        found: list[bytes] = [data for data, _ in read_split("val", Path(path))]
        return found[:: max(len(found) // _PHOTOS, 1)][:_PHOTOS]  # spread over all classes
    rng = np.random.default_rng(0)
    return [_generated(rng) for _ in range(_PHOTOS)]


def origin() -> str:
    """Where the texts and photos come from, in words."""
    texts_of = "CLINC150's test split" if os.environ.get("NORMSCOPE_CLINC150") else "random words"
    photos_of = "Imagenette's evaluation split" if os.environ.get("NORMSCOPE_IMAGENETTE") else "generated"
    return f"photos: {photos_of}; texts: {texts_of}"


def _generated(rng: np.random.Generator) -> bytes:
    """Clouds and grain: about as many bytes as a photo of 320 x 427 has."""
    clouds = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((427, 320), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (320, 427, 3))
    pixels = np.clip(np.asarray(clouds) + grain, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
