"""How far the channels of a sample are from those of a reference: their features in, one distance for each row out."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.statistics.channel_features import ChannelFeatures
from models.statistics.mahalanobis import MahalanobisDistance
from models.statistics.moments import Floats
from models.statistics.neighbours import Neighbours


@dataclass(frozen=True)
class ChannelDistances:
    """Fitted to n samples.

    Attributes:
        neighbours: of their directions.
        levels: None for a model that gives none.
    """

    neighbours: Neighbours
    levels: MahalanobisDistance | None

    @classmethod
    def fit(cls, channels: ChannelFeatures, read: Floats, labels: NDArray[np.integer[Any]]) -> Self:
        """Of features (n, K) as `channels.read` lists them, and classes (n,)."""
        end = sum(channels.extents)
        neighbours = Neighbours.fit(read[:, :end], channels.extents, channels.nearest, centred=not channels.rectified)
        return cls(neighbours, _fit_levels(channels, read[:, end:], labels))

    @classmethod
    def kept(
        cls,
        channels: ChannelFeatures,
        center: Floats,
        directions: NDArray[np.floating],
        levels: NDArray[np.floating],
        labels: NDArray[np.integer[Any]],
    ) -> Self:
        """Of what a reference keeps of its samples: center, directions and levels as of `Evidence`, classes (n,)."""
        neighbours = Neighbours(channels.extents, center, directions.astype(np.float32), channels.nearest)
        return cls(neighbours, _fit_levels(channels, levels.astype(np.float64), labels))

    def of(self, read: Floats) -> Floats:
        """Of features (N, K): float64 (N, R), in the order of `channels.rows`."""
        end = sum(self.neighbours.extents)
        distances = self.neighbours.distances(read[:, :end])
        if self.levels is None:
            return distances
        return np.concatenate([distances, self.levels.contributions(read[:, end:]).sum(1, keepdims=True)], axis=1)


def _fit_levels(channels: ChannelFeatures, levels: Floats, labels: NDArray[np.integer[Any]]) -> MahalanobisDistance | None:
    return None if channels.leveled is None else MahalanobisDistance.fit(levels, labels)
