"""What is looked at of the channels of a model, beside the values of its layers: statistics by channel in, rows of features out.

Where all normalizations have few channels together, as in a small Transformer:

    directions  the channel means after each of them

In a network with batch normalization and more channels:

    directions  the positive parts of the sum of the last residual add but one: what the rectifier after it lets through, on average
    levels      mean / rms and log std of every channel before the narrowest normalization, the last of several

The narrow one has so few channels that the samples of a reference tell how they depend on each other. With mean m and standard
deviation s of a channel, its positive part is that of a normal variable, m P(m / s) + s p(m / s), with P and p the standard normal
distribution and density.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from models.statistics.layers import BatchStatistics, SideLayout
from models.statistics.moments import Floats, Moments

MOST_BYTES = 6 << 20
"""Of these features of all samples of a reference as float16; with more it keeps none."""

_FEW_CHANNELS = 1024  # of all normalizations together
_NEAREST_OF_MEANS, _NEAREST_OF_PARTS = 1, 10  # which neighbour counts
_LEAST_DEVIATION = 1e-15


@dataclass(frozen=True)
class ChannelFeatures:
    """Of one model; the choice was made on the shifts of group 1 (`models/shifts.py`).

    Attributes:
        layout: of its layers.
        directed: rows of the layout that give directions.
        leveled: the row that gives levels, if any.
        rectified: whether directions are those of positive parts, from 0; else those of means, from their mean over the samples.
    """

    layout: SideLayout
    directed: tuple[int, ...] = ()
    leveled: int | None = None
    rectified: bool = False

    @classmethod
    def of(cls, layout: SideLayout) -> Self:
        """What is looked at in a model with these layers; nothing where none of the two ways is open."""
        norms = [i for i, (layer, side) in enumerate(layout.rows) if side == "after" and layer.channels is not None]
        few = cls(layout, tuple(norms))
        if few.width <= _FEW_CHANNELS:
            return few
        sums = [layout.row_of[add.layer, "sum"] for add in layout.adds if add.channels is not None]
        batch_norms = [layer for layer in layout.layers if layer.kind == "batch_norm" and layer.channels is not None]
        if not sums or not batch_norms:
            return cls(layout)
        narrowest = min(reversed(batch_norms), key=lambda layer: layer.channels or 0)
        return cls(layout, (sums[-2:][0],), layout.row_of[narrowest.layer, "before"], rectified=True)

    @cached_property
    def extents(self) -> tuple[int, ...]:
        """Channels of each row that gives directions."""
        return tuple(self.layout.rows[row][0].channels or 0 for row in self.directed)

    @cached_property
    def levels(self) -> int:
        """Number of features that are levels."""
        return 0 if self.leveled is None else 2 * (self.layout.rows[self.leveled][0].channels or 0)

    @property
    def width(self) -> int:
        """K, the number of features in all."""
        return sum(self.extents) + self.levels

    @property
    def rows(self) -> list[int]:
        """Of the layout, the row of each distance that these features give: of directions, then of levels."""
        return [*self.directed, *([] if self.leveled is None else [self.leveled])]

    @property
    def nearest(self) -> int:
        """Which neighbour of a direction counts, 1 for the nearest."""
        return _NEAREST_OF_PARTS if self.rectified else _NEAREST_OF_MEANS

    def has_room(self, samples: int) -> bool:
        """Whether a reference of so many samples keeps these features."""
        return 0 < 2 * samples * self.width <= MOST_BYTES

    def read(self, observed: BatchStatistics) -> Floats:
        """The features of the samples of a batch, directions before levels: (N, K); the run was asked for channels."""
        parts = [np.zeros((len(observed), 0))]
        for row in self.directed:
            channels = observed.channels(row)
            parts.append(positive_parts(channels) if self.rectified else channels.mean)
        if self.leveled is not None:
            parts += _levels(observed.channels(self.leveled))
        return np.concatenate(parts, axis=1)


def positive_parts(channels: Moments) -> Floats:
    """E max(x, 0) of normal variables with the means and variances of these channels, (N, C)."""
    deviation = np.maximum(np.sqrt(channels.var), _LEAST_DEVIATION)
    z = channels.mean / deviation
    tail = np.array([math.erfc(each) for each in (-z / math.sqrt(2)).ravel().tolist()]).reshape(z.shape)
    return np.asarray(channels.mean * tail / 2 + deviation * np.exp(-np.square(z) / 2) / math.sqrt(2 * math.pi))


def _levels(channels: Moments) -> list[Floats]:
    deviation = np.sqrt(channels.var)
    rms = np.hypot(channels.mean, deviation)
    level = np.divide(channels.mean, rms, out=np.zeros_like(rms), where=rms > 0)
    return [level, np.log(np.maximum(deviation, _LEAST_DEVIATION))]
