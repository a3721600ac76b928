"""Nearest neighbours by direction: channel means of samples in, how far a sample points from all of them out.

Of each of R rows (layer and side) the channel means are a vector, centred by its mean over the samples; the distance is

    d_r(x) = 1 - max over samples i of cos(x_r - center_r, x_ir - center_r)    (0..2)

Source: Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors" (arXiv:2204.06507), section 3, with k = 1 and
directions as the normalized features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.statistics.moments import Floats


@dataclass(frozen=True)
class Neighbours:
    """Fitted to n samples.

    Attributes:
        extents: channels of every row; K is their sum.
        center: float64 (K,), mean over the samples.
        directions: float32 (n, K), of length 1 within each row.
    """

    extents: tuple[int, ...]
    center: Floats
    directions: NDArray[np.float32]

    @classmethod
    def fit(cls, means: Floats, extents: Sequence[int]) -> Self:
        """Of channel means (n, K)."""
        center = means.mean(0)
        return cls(tuple(extents), center, _directions(means - center, extents))

    def distances(self, means: Floats) -> Floats:
        """d_r of channel means (N, K): float64 (N, R)."""
        asked = _directions(means - self.center, self.extents)
        distances = np.empty((len(means), len(self.extents)))
        for i, row in enumerate(_rows(self.extents)):
            distances[:, i] = 1 - (asked[:, row] @ self.directions[:, row].T).max(1)
        return distances


def _directions(deviations: Floats, extents: Sequence[int]) -> NDArray[np.float32]:
    unit = np.zeros(deviations.shape, np.float32)
    for row in _rows(extents):
        lengths = np.linalg.norm(deviations[:, row], axis=1, keepdims=True)
        np.divide(deviations[:, row], lengths, out=unit[:, row], where=lengths > 0, casting="same_kind")
    return unit


def _rows(extents: Sequence[int]) -> Iterator[slice]:
    end = 0
    for extent in extents:
        yield slice(end, end + extent)
        end += extent
