"""The reference of a model: what its layers looked like for data of the kind that it was trained on, as a file of the artifact.

    values      float32 (n, V)        of each sample the quantities of `request_values.py`, NaN where undefined
    mean, var   float64 (sum of C,)   of the channels of all reductions of the layout, over all elements of all samples
    labels, held_out, center, directions, levels
                                      what anomaly scores need beside the values: the fields of `anomaly.py`'s `Evidence`

Written by `models/reference.py`; the service compares traffic with it and scores single inputs against it.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.artifact import REFERENCE, Artifact, ArtifactError
from models.statistics.anomaly import AnomalyScorer, Evidence
from models.statistics.channel_features import ChannelFeatures
from models.statistics.layer_features import LayerFeatures
from models.statistics.layers import SideLayout
from models.statistics.moments import Floats
from models.statistics.request_values import value_count

_FIELDS = ("values", "mean", "var")
_EVIDENCE = tuple(field.name for field in fields(Evidence))


@dataclass(frozen=True)
class Reference:
    """See the module; `evidence` is None in files of before there were anomaly scores."""

    values: NDArray[np.float32]
    mean: Floats
    var: Floats
    evidence: Evidence | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.values)

    def moments_of(self, layout: SideLayout) -> dict[tuple[str, str], tuple[Floats, Floats]]:
        """Mean and variance of the channels of every layer and side, (C,) each.

        Nothing where the manifest does not tell how many channels a layer has: it is not known where they begin.
        """
        extents = [extent for extent in layout.channels if extent is not None]
        if len(extents) < len(layout.channels):
            return {}
        ends = np.cumsum(extents)[:-1]
        of_reduction = list(zip(np.split(self.mean, ends), np.split(self.var, ends), strict=True))
        return {(layer.layer, side): of_reduction[i] for (layer, side), i in zip(layout.rows, layout.reduction_of, strict=True)}

    def scorer(self, layout: SideLayout) -> AnomalyScorer | None:
        """What scores samples against it; None without evidence."""
        return None if self.evidence is None else AnomalyScorer(layout, self.values, self.evidence)

    def save(self, folder: Path) -> None:
        """Writes the file into the folder of an artifact."""
        evidence = {} if self.evidence is None else vars(self.evidence)
        np.savez_compressed(folder / REFERENCE, allow_pickle=False, **{name: getattr(self, name) for name in _FIELDS}, **evidence)

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
                known = {field: file[field] for field in (*_FIELDS, *_EVIDENCE) if field in file}
            if _EVIDENCE[0] in known:  # files of before there were levels have none
                known.setdefault("levels", np.zeros((len(known["directions"]), 0), np.float16))
            evidence = Evidence(*(known[field] for field in _EVIDENCE)) if _EVIDENCE[0] in known else None
            reference = cls(known["values"], known["mean"], known["var"], evidence)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{name} cannot be read; {remedy}") from error
        for field, expected in _shapes(layout, known).items():
            if not _fits(known[field].shape, expected):
                shown = tuple("any" if extent is None else extent for extent in expected)
                raise ArtifactError(f"{name} holds {field} of shape {known[field].shape}, the layers need {shown}; {remedy}")
        return reference


def _shapes(layout: SideLayout, known: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int | None, ...]]:
    """What the shapes of the fields must be; None for an extent that nothing tells."""
    samples = len(known["values"]) if known["values"].ndim else None
    all_channels = None if None in layout.channels else sum(extent or 0 for extent in layout.channels)
    if all_channels is None and known["mean"].ndim:
        all_channels = len(known["mean"])  # and var the same
    shapes: dict[str, tuple[int | None, ...]] = {
        "values": (None, value_count(len(layout.rows), len(layout.adds))),
        "mean": (all_channels,),
        "var": (all_channels,),
    }
    if _EVIDENCE[0] not in known:
        return shapes
    features = LayerFeatures(layout)
    channels = ChannelFeatures.of(layout) if known["center"].size else ChannelFeatures(layout)
    finite = int(features.finite(known["values"]).sum()) if _fits(known["values"].shape, shapes["values"]) else None
    return shapes | {
        "labels": (samples,),
        "held_out": (samples, len(layout.layers) + len(channels.rows)),
        "center": (sum(channels.extents),),
        "directions": (finite, sum(channels.extents)),
        "levels": (finite, channels.levels),
    }


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(b is None or a == b for a, b in zip(shape, expected, strict=True))
