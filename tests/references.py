"""References of small models, made of chosen numbers in place of data."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.artifact import REFERENCE, load_artifact, write_manifest
from models.statistics.layers import SideLayout
from models.statistics.reference import Reference
from models.statistics.request_values import value_count


def quantities(folder: Path) -> int:
    """V of the artifact in this folder."""
    layout = SideLayout(tuple(load_artifact(folder).manifest.layers))
    return value_count(len(layout.rows), len(layout.adds))


def write_reference(folder: Path, values: NDArray[np.floating]) -> None:
    """Gives the artifact a reference of these values (n, V); that of the channels has one."""
    artifact = load_artifact(folder)
    Reference(values.astype(np.float32), np.zeros(1), np.ones(1)).save(folder)
    write_manifest(folder, artifact.manifest, sorted({*artifact.manifest.files, REFERENCE}))
