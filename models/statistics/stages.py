"""The stages of a layer for one sample in full: histogram and quantiles of every side, and what lies between before and after."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.artifact import Layer
from models.instrument.formulas import Formula
from models.statistics.distribution import distribution
from models.statistics.layers import summary
from models.statistics.moments import channel_moments
from models.statistics.normalized import normalize

NORMALIZED = "normalized"


def describe_stages(
    layer: Layer, tensors: Mapping[str, NDArray[np.floating]], formula: Formula | None
) -> dict[str, dict[str, Any]]:
    """Side -> `histogram` and `quantiles`; `normalized` also has every statistic of a side, and is missing without a formula.

    Args:
        layer: of the tensors.
        tensors: side -> activation (1, ...), without padding.
        formula: of a normalization.
    """
    described = {side: distribution(x[0]) for side, x in tensors.items()}
    if formula is not None:
        normalized = normalize(tensors["before"], formula)
        moments = channel_moments(normalized, layer.channel_axis).pool(axis=1)
        described[NORMALIZED] = {**summary(moments, 0), **distribution(normalized[0])}
    return described
