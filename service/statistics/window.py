"""The moments of one stretch of time, mergeable in any order: what all layers of a model looked like in it. Knows no storage.

Moments are merged exactly (`moments.py`), those over all elements and those over the values of the single requests alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.statistics.layers import BatchStatistics
from models.statistics.moments import Floats, Moments
from models.statistics.request_values import request_values, value_count

_ELEMENT_FIELDS = ("count", "mean", "m2", "minimum", "maximum", "zeros", "nonfinite")
_VALUE_FIELDS = ("count", "mean", "m2", "minimum", "maximum")


@dataclass(frozen=True)
class WindowMoments:
    """Moments of S sides and V quantities. A sample with NaN or infinities on a side counts there as nonfinite only.

    Attributes:
        elements: over all elements of all samples, fields (..., S); `nonfinite` is the number of such elements.
        nonfinite_samples: samples that were left out of a side, (..., S).
        values: over the values of the single requests, one each, fields (..., V); `count` is the number of known values.
    """

    elements: Moments
    nonfinite_samples: Floats
    values: Moments

    @classmethod
    def of(cls, batch: BatchStatistics, values: Floats | None = None) -> Self:
        """Merges the samples of a batch; `values` are their `request_values`, if they are known."""
        pooled = batch.pooled
        return cls(
            elements=without_nonfinite_samples(pooled).pool(axis=0),
            nonfinite_samples=(pooled.nonfinite > 0).sum(0).astype(np.float64),
            values=single_values(request_values(batch) if values is None else values).pool(axis=0),
        )

    @classmethod
    def empty(cls, sides: int, adds: int) -> Self:
        return cls(Moments.empty(sides), np.zeros(sides), Moments.empty(value_count(sides, adds)))

    @classmethod
    def merged(cls, parts: "Sequence[WindowMoments]") -> Self:
        """All of them together; at least one."""
        return cls(
            elements=Moments.stack([part.elements for part in parts], axis=0).pool(axis=0),
            nonfinite_samples=np.sum([part.nonfinite_samples for part in parts], axis=0),
            values=Moments.stack([part.values for part in parts], axis=0).pool(axis=0),
        )

    def pooled(self) -> Self:
        """For fields (W, ...) of W windows, all of them together: fields (...)."""
        return type(self)(self.elements.pool(axis=0), self.nonfinite_samples.sum(0), self.values.pool(axis=0))

    def pool_neighbours(self, starts: NDArray[np.int64]) -> Self:
        """For fields (W, ...) of W windows, merges those from each start to the next: fields (len(starts), ...)."""
        return type(self)(
            elements=_pool_segments(self.elements, starts),
            nonfinite_samples=np.add.reduceat(self.nonfinite_samples, starts, 0),
            values=_pool_segments(self.values, starts),
        )

    def to_bytes(self) -> bytes:
        """float64, little-endian: the fields one after the other."""
        elements = [getattr(self.elements, name) for name in _ELEMENT_FIELDS]
        values = [getattr(self.values, name) for name in _VALUE_FIELDS]
        return np.concatenate([*elements, self.nonfinite_samples, *values]).astype("<f8").tobytes()

    @staticmethod
    def are_in(blob: bytes, sides: int, adds: int) -> bool:
        """Whether a blob was written for so many sides and adds, as far as its length and its counts tell."""
        if len(blob) != 8 * ((len(_ELEMENT_FIELDS) + 1) * sides + len(_VALUE_FIELDS) * value_count(sides, adds)):
            return False
        count = np.frombuffer(blob, "<f8", sides)
        return bool(((count >= 0) & (count < np.inf)).all())

    @classmethod
    def from_bytes(cls, blobs: Sequence[bytes], sides: int, adds: int) -> Self:
        """The inverse, for W windows at once: fields (W, ...).

        Raises:
            ValueError: a blob was not written for so many sides and adds.
        """
        quantities = value_count(sides, adds)
        of_sides = len(_ELEMENT_FIELDS) + 1
        numbers = np.frombuffer(b"".join(blobs), "<f8").reshape(len(blobs), of_sides * sides + len(_VALUE_FIELDS) * quantities)
        planes = numbers[:, : of_sides * sides].reshape(-1, of_sides, sides)
        values = numbers[:, of_sides * sides :].reshape(-1, len(_VALUE_FIELDS), quantities)
        count, mean, m2, minimum, maximum = values.transpose(1, 0, 2)
        none = np.zeros_like(count)
        return cls(
            elements=Moments(*planes[:, :-1].transpose(1, 0, 2)),
            nonfinite_samples=planes[:, -1],
            values=Moments(count, mean, m2, minimum, maximum, zeros=none, nonfinite=none),
        )


def single_values(values: Floats) -> Moments:
    """Every value as the moments of itself alone; NaN and infinities as those of nothing. Fields of the same shape."""
    known = np.isfinite(values)
    zero = np.zeros_like(values)
    return Moments(
        count=known.astype(np.float64),
        mean=np.where(known, values, 0),
        m2=zero,
        minimum=np.where(known, values, np.inf),
        maximum=np.where(known, values, -np.inf),
        zeros=zero,
        nonfinite=zero,
    )


def without_nonfinite_samples(moments: Moments) -> Moments:
    """The moments (N, ...) of N samples, where those with nonfinite elements are left out, but for the number of these."""
    bad = moments.nonfinite > 0
    if not bad.any():
        return moments
    return Moments(
        count=np.where(bad, 0, moments.count),
        mean=np.where(bad, 0, moments.mean),
        m2=np.where(bad, 0, moments.m2),
        minimum=np.where(bad, np.inf, moments.minimum),
        maximum=np.where(bad, -np.inf, moments.maximum),
        zeros=np.where(bad, 0, moments.zeros),
        nonfinite=moments.nonfinite,
    )


def _pool_segments(moments: Moments, starts: NDArray[np.int64]) -> Moments:
    """Merges along the first axis all groups from each start to the next; starts rise strictly."""

    def total(values: Floats) -> Floats:
        return np.add.reduceat(values, starts, 0)

    count = total(moments.count)
    mean = total(moments.count * moments.mean) / np.maximum(count, 1)
    lengths = np.diff([*starts, len(moments.count)])
    between = moments.count * (moments.mean - np.repeat(mean, lengths, axis=0)) ** 2
    return Moments(
        count=count,
        mean=mean,
        m2=total(moments.m2 + between),
        minimum=np.minimum.reduceat(moments.minimum, starts, 0),
        maximum=np.maximum.reduceat(moments.maximum, starts, 0),
        zeros=total(moments.zeros),
        nonfinite=total(moments.nonfinite),
    )
