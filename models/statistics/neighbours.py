"""Nearest neighbours by direction: features of the channels of samples in, how far a sample points from all of them out.

Of each of R rows (layer and side) the features are a vector, seen from a center (its mean over the samples, or 0); the distance is

    d_r(x) = 1 - the k-th largest over samples i of cos(x_r - center_r, x_ir - center_r)    (0..2)

Source: Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors" (arXiv:2204.06507), section 3, with directions
as the normalized features.
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
        center: float64 (K,), what directions are seen from.
        directions: float32 (n, K), of length 1 within each row.
        k: which neighbour counts, 1 for the nearest; the last where there are fewer.
    """

    extents: tuple[int, ...]
    center: Floats
    directions: NDArray[np.float32]
    k: int = 1

    @classmethod
    def fit(cls, features: Floats, extents: Sequence[int], k: int = 1, *, centred: bool = True) -> Self:
        """Of features (n, K), seen from their mean or, where they are not `centred`, from 0."""
        center = features.mean(0) if centred else np.zeros(features.shape[1])
        return cls(tuple(extents), center, _directions(features - center, extents), k)

    def distances(self, features: Floats) -> Floats:
        """d_r of features (N, K): float64 (N, R)."""
        asked = _directions(features - self.center, self.extents)
        distances = np.empty((len(features), len(self.extents)))
        place = max(0, len(self.directions) - self.k)
        for i, row in enumerate(_rows(self.extents)):
            distances[:, i] = 1 - np.partition(asked[:, row] @ self.directions[:, row].T, place, axis=1)[:, place]
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
