"""What every single request has one value of: statistics of a batch in, one row of numbers for each of its samples out.

With S rows (layer and side) and A residual adds these are V = 3 S + 2 A quantities: mean of all rows, std, l2, then residual_ratio
of all adds, cosine.
"""

import numpy as np

from models.artifact import Layer
from models.statistics.layers import BatchStatistics, SideLayout
from models.statistics.moments import Floats

SIDE_VALUES = ("mean", "std", "l2")
ADD_VALUES = ("residual_ratio", "cosine")


def value_count(sides: int, adds: int) -> int:
    """V for S sides and A adds."""
    return len(SIDE_VALUES) * sides + len(ADD_VALUES) * adds


def value_places(layout: SideLayout) -> list[tuple[Layer, str | None, str]]:
    """Layer, side (None for those of adds) and name of every quantity, in their order."""
    sides = [(layer, side, name) for name in SIDE_VALUES for layer, side in layout.rows]
    return [*sides, *((layer, None, name) for name in ADD_VALUES for layer in layout.adds)]


def request_values(batch: BatchStatistics) -> Floats:
    """The values of the single requests, (N, V); NaN where they are undefined."""
    pooled = batch.pooled
    known = np.where((pooled.count > 0) & (pooled.nonfinite == 0), 1.0, np.nan)
    return np.concatenate(
        [pooled.mean * known, np.sqrt(pooled.var) * known, pooled.l2 * known, batch.residual_ratio, batch.cosine], axis=1
    )
