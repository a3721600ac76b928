"""Moments of activations: one tensor in, exact and mergeable statistics by sample and channel out. Knows no layers.

By numpy, for what the compiled operator of `observe.c` does not reduce inside the graph, and where no compiler was at hand.

With a (M,) the elements of one channel of one sample: mean = sum(a) / M, m2 = sum((a - mean)^2), from which

    var = m2 / count        (population moment, as normalization itself uses)
    l2  = sqrt(m2 + count * mean^2) = sqrt(sum(a^2))

The two-pass form keeps var exact where mean is large against std; E[a^2] - mean^2 in float32 loses it. Merging is exact:
Chan, Golub & LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", equation 2.1.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Activations = NDArray[np.floating]

_SAFE_MAGNITUDE = 1e15  # squares of larger, or of smaller reciprocals, leave the range of float32 sums
_BLOCK_ELEMENTS = 1 << 18  # larger blocks leave the cache, smaller ones cost more in calls than in elements


@dataclass(frozen=True)
class Moments:
    """Moments of many groups of elements at once; every field is float64 of one common shape.

    Where `nonfinite` is above 0 (NaN or infinities among the elements), mean, m2, minimum and maximum are NaN.
    Where `count` is 0, mean and m2 are 0, minimum is inf and maximum -inf: the neutral element of `merge`.
    """

    count: Floats
    mean: Floats
    m2: Floats
    minimum: Floats
    maximum: Floats
    zeros: Floats
    nonfinite: Floats

    @property
    def var(self) -> Floats:
        return self.m2 / np.maximum(self.count, 1)

    @property
    def l2(self) -> Floats:
        return np.sqrt(self.m2 + self.count * self.mean**2)

    @classmethod
    def stack(cls, parts: "list[Moments]", axis: int) -> Self:
        """Joins several along a new axis."""
        return cls(*(np.stack([getattr(part, f.name) for part in parts], axis) for f in fields(cls)))

    @classmethod
    def empty(cls, shape: int | tuple[int, ...]) -> Self:
        """The moments of no elements."""
        zero = np.zeros(shape)
        return cls(zero, zero, zero, np.full(shape, np.inf), np.full(shape, -np.inf), zero, zero)

    def pool(self, axis: int) -> Self:
        """Merges all groups along one axis."""
        count = self.count.sum(axis)
        mean = (self.count * self.mean).sum(axis) / np.maximum(count, 1)
        between = self.count * (self.mean - np.expand_dims(mean, axis)) ** 2
        return type(self)(
            count=count,
            mean=mean,
            m2=(self.m2 + between).sum(axis),
            minimum=self.minimum.min(axis, initial=np.inf),
            maximum=self.maximum.max(axis, initial=-np.inf),
            zeros=self.zeros.sum(axis),
            nonfinite=self.nonfinite.sum(axis),
        )

    def merge(self, other: "Moments") -> Self:
        """The moments of both sets of elements together."""
        return type(self).stack([self, other], axis=0).pool(axis=0)


def channel_moments(x: Activations, channel_axis: int, mask: NDArray[np.bool_] | None = None) -> Moments:
    """Moments of x (N, ...) for each sample and channel: fields of shape (N, C).

    Args:
        x: floating, at least two axes, the samples along the first.
        channel_axis: the axis that is kept beside the first.
        mask: bool (N, M) over the flattened remaining axes; False elements (padding) do not exist for the result.
    """
    if x.size == 0:
        return Moments.empty((len(x), x.shape[channel_axis]))
    x = _widen(x)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinities are counted, not warned of
        if mask is not None and not mask.all():
            return _masked(np.moveaxis(x, channel_axis, -1), mask)
        if channel_axis % x.ndim == x.ndim - 1:
            return _dense(x.reshape(len(x), -1, x.shape[-1]), axis=1)
        return _dense(np.moveaxis(x, channel_axis, 1).reshape(len(x), x.shape[channel_axis], -1), axis=2)


def _widen(x: Activations) -> Activations:
    return x if x.dtype == np.float64 else x.astype(np.float32, copy=False)  # half precision holds no sums


def _dense(values: Activations, axis: int) -> Moments:
    """values (N, C, M) with axis=2, or (N, M, C) with axis=1, which keeps the memory order of tokens."""
    if axis == 1:
        step = max(1, _BLOCK_ELEMENTS // values[0].size)
        blocks = [_reduce(values[start : start + step], axis) for start in range(0, len(values), step)]
    else:  # samples and channels are rows alike
        rows = values.reshape(1, -1, values.shape[2])
        step = max(1, _BLOCK_ELEMENTS // values.shape[2])
        blocks = [_reduce(rows[:, start : start + step], axis) for start in range(0, rows.shape[1], step)]
    shape = (6, values.shape[0], values.shape[3 - axis])
    mean, m2, minimum, maximum, zeros, nonfinite = np.concatenate(blocks, axis=axis).reshape(shape)
    count = np.full(mean.shape, float(values.shape[axis]))
    return _without_nonfinite(Moments(count, mean, m2, minimum, maximum, zeros, nonfinite))


def _reduce(a: Activations, axis: int) -> Floats:
    """mean, m2, minimum, maximum, zeros and nonfinite along one axis of three; small enough to stay in the cache."""
    m = a.shape[axis]
    minimum, maximum = a.min(axis), a.max(axis)  # both propagate NaN
    result = np.zeros((6, *minimum.shape))
    result[2], result[3] = minimum, maximum
    # bytes reduce three times faster than booleans
    result[4] = np.add.reduce((a == 0).view(np.uint8), axis=axis, dtype=np.uint32)
    largest = max(np.abs(minimum).max(), np.abs(maximum).max())
    if not np.isfinite(largest):
        result[5] = (~np.isfinite(a)).sum(axis)
    if not 1 / _SAFE_MAGNITUDE < largest < _SAFE_MAGNITUDE:  # also NaN
        a = a.astype(np.float64)
    center = a.mean(axis, keepdims=True)
    deviation = a - center
    shift = deviation.mean(axis, dtype=a.dtype).astype(np.float64)  # what rounding left in the mean
    squares = np.vecdot(deviation, deviation) if axis == 2 else np.square(deviation, out=deviation).sum(axis)
    result[0] = center.squeeze(axis).astype(np.float64) + shift
    result[1] = np.maximum(squares.astype(np.float64) - m * shift**2, 0)
    return result


def _masked(x: Activations, mask: NDArray[np.bool_]) -> Moments:
    """x (N, ..., C) and mask (N, M), M the product of the axes in between."""
    values, real = x.reshape(len(x), -1, x.shape[-1]).astype(np.float64), mask[:, :, None]
    count = np.broadcast_to(real.sum(1), (len(x), x.shape[-1])).astype(np.float64)
    mean = np.where(real, values, 0).sum(1) / np.maximum(count, 1)
    return _without_nonfinite(
        Moments(
            count=count,
            mean=mean,
            m2=np.square(np.where(real, values - mean[:, None, :], 0)).sum(1),
            minimum=np.where(real, values, np.inf).min(1),
            maximum=np.where(real, values, -np.inf).max(1),
            zeros=((values == 0) & real).sum(1).astype(np.float64),
            nonfinite=(~np.isfinite(values) & real).sum(1).astype(np.float64),
        )
    )


def _without_nonfinite(moments: Moments) -> Moments:
    bad = moments.nonfinite > 0
    if not bad.any():
        return moments
    blank = {name: np.where(bad, np.nan, getattr(moments, name)) for name in ("mean", "m2", "minimum", "maximum")}
    return Moments(count=moments.count, zeros=moments.zeros, nonfinite=moments.nonfinite, **blank)


def sample_dot(a: Activations, b: Activations, mask: NDArray[np.bool_] | None = None, channel_axis: int = -1) -> Floats:
    """Dot product of a and b (N, ...) for each sample: (N,). `mask` is bool (N, M) as `channel_moments` takes it."""
    n = len(a)
    if a.size == 0:
        return np.zeros(n)
    a, b = _widen(a), _widen(b)
    with np.errstate(invalid="ignore", over="ignore"):
        if mask is not None:
            a, b = (np.moveaxis(each, channel_axis, -1).reshape(n, -1, each.shape[channel_axis]) for each in (a, b))
            a = np.where(mask[..., None], a, 0).astype(np.float64)
            b = np.where(mask[..., None], b, 0)
        a, b = a.reshape(n, -1), b.reshape(n, -1)
        dots = np.vecdot(a, b)
        if not np.isfinite(dots).all():  # squares beyond float32
            dots = np.vecdot(a.astype(np.float64), b.astype(np.float64))
    return np.asarray(dots, dtype=np.float64)
