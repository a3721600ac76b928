"""The reference of a model: what its layers looked like for data of the kind that it was trained on, as a file of the artifact.

    values    float32 (n, V)       of each sample the quantities of `request_values.py`, NaN where undefined
    mean, var float64 (sum of C,)  of the channels of all reductions of the layout, over all elements of all samples

Written by `models/reference.py`; the service compares traffic with it.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.artifact import REFERENCE, Artifact, ArtifactError
from models.statistics.layers import SideLayout
from models.statistics.moments import Floats
from models.statistics.request_values import value_count


@dataclass(frozen=True)
class Reference:
    """See the module."""

    values: NDArray[np.float32]
    mean: Floats
    var: Floats

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.values)

    def save(self, folder: Path) -> None:
        """Writes the file into the folder of an artifact."""
        np.savez_compressed(folder / REFERENCE, values=self.values, mean=self.mean, var=self.var)

    @classmethod
    def load(cls, artifact: Artifact, layout: SideLayout) -> Self | None:
        """The reference of an artifact; None if it has none.

        Raises:
            ArtifactError: the file is broken, or was made for other layers.
        """
        if REFERENCE not in artifact.manifest.files:
            return None
        name = f"{artifact.manifest.name}/{artifact.manifest.version}/{REFERENCE}"
        remedy = "make it again with `python -m models reference`"
        try:
            with np.load(artifact.folder / REFERENCE, allow_pickle=False) as file:
                reference = cls(*(file[field] for field in ("values", "mean", "var")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{name} cannot be read; {remedy}") from error
        quantities = value_count(len(layout.rows), len(layout.adds))
        if reference.values.ndim != 2 or reference.values.shape[1] != quantities or reference.mean.shape != reference.var.shape:
            raise ArtifactError(
                f"{name} holds values {reference.values.shape}, the layers have {quantities} for each sample; {remedy}"
            )
        return reference
