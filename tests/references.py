"""Small models with references: measured on random photos and texts of random classes, or made of chosen numbers."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.artifact import REFERENCE, Artifact, load_artifact, write_manifest
from models.data.batch import Batch
from models.preprocessing import TextPreprocessing, encode_text, pad_tokens
from models.reference import measure
from models.statistics.layers import SideLayout
from models.statistics.reference import Reference
from models.statistics.request_values import value_count
from tests.networks import SENTENCES

SAMPLES = 60
_BATCH_SIZE = 20


def copy_with_references(source: Path, target: Path) -> Path:
    """Copies `vision/1` and `text/1` with a reference of 60 samples each; returns `target`."""
    for name in ("vision", "text"):
        shutil.copytree(source / name, target / name)
        artifact = load_artifact(target / name / "1")
        measure(artifact, SideLayout(tuple(artifact.manifest.layers)), _batches(artifact)).save(artifact.folder)
        manifest = artifact.manifest.model_copy(update={"reference_samples": SAMPLES})
        write_manifest(artifact.folder, manifest, sorted({*manifest.files, REFERENCE}))
    return target


def _batches(artifact: Artifact) -> Iterator[Batch]:
    random, preprocessing = np.random.default_rng(0), artifact.manifest.preprocessing
    words = " ".join(SENTENCES).split()
    for _ in range(SAMPLES // _BATCH_SIZE):
        labels = random.integers(0, len(artifact.manifest.labels), _BATCH_SIZE)
        if isinstance(preprocessing, TextPreprocessing):
            tokenizer = preprocessing.load_tokenizer(artifact.folder)
            texts = [" ".join(random.choice(words, random.integers(2, 8))) for _ in labels]
            yield pad_tokens([encode_text(tokenizer, text, preprocessing.max_length)[0] for text in texts]), labels
        else:
            yield (
                (random.normal(random.normal(size=(_BATCH_SIZE, 3, 1, 1)), 1, (_BATCH_SIZE, 3, 64, 64)).astype(np.float32),),
                labels,
            )


def quantities(folder: Path) -> int:
    """V of the artifact in this folder."""
    layout = SideLayout(tuple(load_artifact(folder).manifest.layers))
    return value_count(len(layout.rows), len(layout.adds))


def write_reference(folder: Path, values: NDArray[np.floating], mean: float = 0, var: float = 1) -> None:
    """Gives the artifact a reference of these values (n, V), all channels alike, without what scores of single inputs need."""
    artifact = load_artifact(folder)
    channels = sum(extent or 0 for extent in SideLayout(tuple(artifact.manifest.layers)).channels)
    Reference(values.astype(np.float32), np.full(channels, float(mean)), np.full(channels, float(var))).save(folder)
    write_manifest(folder, artifact.manifest, sorted({*artifact.manifest.files, REFERENCE}))
