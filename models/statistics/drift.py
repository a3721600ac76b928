"""Whether a window of traffic looks like the reference: values of single requests in, mergeable scores and the test of them out.

Each value of a request is turned into a normal score: its rank among the reference's n values of that quantity, through the
inverse of the normal distribution (van der Waerden scores). Whatever the distribution of the quantity, a request like those of the
reference has scores of mean 0 and variance 1. Of a window only their count, sum and sum of squares are kept, which merge by adding.
The unit is the request. With m requests in the window both samples err, and 1/d = 1/m + 1/n:

    location   mean(z) * sqrt(d)  is about normal                   (the inputs have moved)
    scale      mean(z^2) * d      is about chi-squared, d degrees   (they are wider or narrower, such as those of one class)

Requests with undefined values (NaN, infinities) have an exact test of their own. All tests of a window share one level by
Bonferroni's inequality, which holds however the layers depend on each other.

Sources: van der Waerden 1952, "Order tests for the two-sample problem and their power"; Klotz 1962, "Nonparametric tests for scale"
(squares of normal scores); Wilson & Hilferty 1931, "The distribution of chi-square".
"""

import hashlib
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from models.statistics.moments import Floats
from models.statistics.request_values import SIDE_VALUES

State = Literal["ok", "warning", "drift", "unknown"]

LEAST_REQUESTS = 30
"""With fewer in a window nothing is said: the state is `unknown`."""

_SAME = 1e-5
"""Of the magnitude of a quantity: values nearer to each other are ties, since two machines may differ by as much."""
_LEAST_SPREAD = 0.9  # of mean(z^2) within the reference; below it there are too many ties for chi-squared
_WARNINGS_PER_ALARM = 30
_MONTH_S = 30 * 86_400
_HASH_BYTES = 8
_MAX_SCORE = 300.0  # of a p-value that float64 cannot hold


@dataclass(frozen=True)
class ReferenceRanks:
    """The values of a reference, ordered, so that those of traffic find their rank.

    Attributes:
        fingerprint: of the values; scores of another reference are not comparable.
        samples: number of samples.
        undefined: of these, samples with an undefined value.
        counts: int (V,), known values of each quantity.
        ordered: (V, n), rising, NaN last.
        tolerance: (V,), values nearer than this are ties.
        scores: by number of known values k, the score (2 k + 1,) of twice a mid-rank.
        spread: (V,), mean(z^2) of the reference's own values: 1 without ties, 0 for a constant quantity.
    """

    fingerprint: bytes
    samples: int
    undefined: int
    counts: NDArray[np.int64]
    ordered: Floats
    tolerance: Floats
    scores: dict[int, Floats]
    spread: Floats

    @classmethod
    def of(cls, values: NDArray[np.floating], sides: int) -> Self:
        """Orders the values.

        Args:
            values: (n, V), as in `Reference`: three for each side, then two for each residual add.
            sides: S, the number of rows (layer and side).
        """
        known = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
        ordered = np.sort(known.T, axis=1)
        counts = np.isfinite(ordered).sum(1)
        tolerance = _SAME * _magnitude(known, sides)
        scores = {k: normal_scores(k) for k in np.unique(counts).tolist()}
        fingerprint = hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()[:_HASH_BYTES]
        undefined = int(np.isnan(known).any(1).sum())
        ranks = cls(fingerprint, len(values), undefined, counts, ordered, tolerance, scores, np.zeros(len(ordered)))
        own = ranks.score(known)
        spread = np.nansum(own**2, axis=0) / np.maximum(counts, 1)
        return cls(fingerprint, len(values), undefined, counts, ordered, tolerance, scores, spread)

    def score(self, values: Floats) -> Floats:
        """The normal scores (N, V) of the values (N, V) of N requests; NaN where a value is undefined."""
        low, high = ((values + step).T.copy() for step in (-self.tolerance, self.tolerance))
        scored = np.empty(low.shape)
        for i, (ordered, count) in enumerate(zip(self.ordered, self.counts.tolist(), strict=True)):
            known = ordered[:count]
            scored[i] = self.scores[count][known.searchsorted(low[i], "left") + known.searchsorted(high[i], "right")]
        return np.where(np.isfinite(values), scored.T, np.nan)


def normal_scores(known: int) -> Floats:
    """The score (2 k + 1,) of twice a mid-rank 0..k among k known values, with mean 0 and mean square 1 over all whole ranks.

    A new value that is like the known ones is equally likely to take each of the k + 1 whole ranks.
    """
    inverse = NormalDist().inv_cdf
    scores = np.array([inverse((twice + 1) / (2 * known + 2)) for twice in range(2 * known + 1)])
    square = float((scores[::2] ** 2).mean())
    return scores / math.sqrt(square) if square > 0 else scores


def _magnitude(known: Floats, sides: int) -> Floats:
    """What an error of each quantity is small against, (V,): the root mean square of a side, for the adds the value itself."""
    if not len(known):
        return np.zeros(known.shape[1])
    own = np.abs(known)
    rms = np.hypot(known[:, :sides], known[:, sides : 2 * sides])
    own[:, : 2 * sides] = np.concatenate([rms, rms], axis=1)
    adds = (known.shape[1] - len(SIDE_VALUES) * sides) // 2
    own[:, known.shape[1] - adds :] = 1  # a cosine
    total, count = np.nansum(own, axis=0), np.isfinite(own).sum(0)
    return np.asarray(total / np.maximum(count, 1), dtype=np.float64)


@dataclass(frozen=True)
class WindowScores:
    """What is kept of the scores of a window.

    Attributes:
        fingerprint: of the reference.
        samples: requests in it.
        undefined: of these, requests with an undefined value.
        count: (V,), known values of each quantity.
        total: (V,), sum of their scores.
        squares: (V,), sum of the squares.
    """

    fingerprint: bytes
    samples: int
    undefined: int
    count: Floats
    total: Floats
    squares: Floats

    @classmethod
    def of(cls, reference: ReferenceRanks, values: Floats) -> Self:
        """Of the values (N, V) of N requests."""
        return cls.of_scores(reference, reference.score(values))

    @classmethod
    def of_scores(cls, reference: ReferenceRanks, scores: Floats) -> Self:
        """Of the scores (N, V) of N requests."""
        known = np.isfinite(scores)
        clean = np.where(known, scores, 0)
        undefined = int((~known).any(1).sum())
        return cls(reference.fingerprint, len(scores), undefined, known.sum(0).astype(np.float64), clean.sum(0), (clean**2).sum(0))

    @classmethod
    def empty(cls, reference: ReferenceRanks) -> Self:
        """Of no requests."""
        return cls.of_scores(reference, np.empty((0, len(reference.counts))))

    def merge(self, other: "WindowScores") -> Self:
        """Of both windows together; both are of the same reference."""
        return type(self)(
            self.fingerprint,
            self.samples + other.samples,
            self.undefined + other.undefined,
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
        )

    def to_bytes(self) -> bytes:
        """The fingerprint, then float64, little-endian: samples, undefined, count, total, squares."""
        numbers = np.concatenate([[self.samples, self.undefined], self.count, self.total, self.squares])
        return self.fingerprint + numbers.astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, blob: bytes, reference: ReferenceRanks) -> Self | None:
        """The inverse; None if the scores are those of another reference."""
        quantities = len(reference.counts)
        if blob[:_HASH_BYTES] != reference.fingerprint or len(blob) != _HASH_BYTES + 8 * (2 + 3 * quantities):
            return None
        numbers = np.frombuffer(blob, "<f8", offset=_HASH_BYTES)
        count, total, squares = numbers[2:].reshape(3, quantities)
        return cls(reference.fingerprint, int(numbers[0]), int(numbers[1]), count, total, squares)


@dataclass(frozen=True)
class Levels:
    """The p-values, corrected for all tests of a window, at and below which its state is no longer `ok`."""

    drift: float
    warning: float

    @classmethod
    def of(cls, false_alarms_per_month: float, window_s: int = 60) -> Self:
        """For so many expected false `drift` states in 30 days; of false warnings there are 30 times as many, about one a day.

        Args:
            false_alarms_per_month: of one model, over all its layers together.
            window_s: seconds of a window; 43,200 windows of a minute are 30 days.
        """
        drift = min(false_alarms_per_month * window_s / _MONTH_S, 1.0)
        return cls(drift, min(_WARNINGS_PER_ALARM * drift, 1.0))


@dataclass(frozen=True)
class WindowTest:
    """The tests of a window against the reference. All p-values are corrected for the number of tests: Bonferroni, at most 1.

    Attributes:
        samples: requests in the window.
        undefined: of these, requests with an undefined value.
        effect: (V,), mean score: about the number of standard deviations by which the quantity has moved; NaN without values.
        location: (V,), p-value that the quantity has moved.
        spread: (V,), mean square score against that of the reference; above 1 it is wider. NaN without values.
        scale: (V,), p-value that its spread has changed; 1 where the reference has too many ties.
        undefined_p: p-value that more requests are undefined than in the reference.
        strange: requests are undefined, and none in the reference is.
        missing: int (V,), requests whose value of the quantity is undefined.
    """

    samples: int
    undefined: int
    effect: Floats
    location: Floats
    spread: Floats
    scale: Floats
    undefined_p: float
    strange: bool
    missing: NDArray[np.int64]

    @classmethod
    def of(cls, scores: WindowScores, reference: ReferenceRanks) -> Self:
        """Tests a window whose scores are of this reference."""
        counted = (scores.count > 0) & (reference.counts > 0)
        m, n = (np.where(counted, each, 1) for each in (scores.count, reference.counts))
        degrees = 1 / (1 / m + 1 / n)
        effect = np.where(counted, scores.total / m, np.nan)
        tied = ~counted | (reference.spread < _LEAST_SPREAD)
        spread = np.where(tied, np.nan, scores.squares / m / np.where(tied, 1, reference.spread))
        tests = 2 * len(effect) + 1
        more = _hypergeometric_tail(scores.undefined, scores.samples, reference.undefined, reference.samples)
        return cls(
            scores.samples,
            scores.undefined,
            effect,
            np.minimum(tests * two_sided(effect * np.sqrt(degrees)), 1),
            spread,
            np.minimum(tests * two_sided(wilson_hilferty(spread, degrees)), 1),
            min(tests * more, 1.0),
            scores.undefined > 0 and reference.undefined == 0,
            (scores.samples - scores.count).astype(np.int64),
        )

    @property
    def p_values(self) -> Floats:
        """Of each quantity the smaller of both, (V,)."""
        return np.minimum(self.location, self.scale)

    @property
    def p_value(self) -> float:
        """That all tests together are as extreme by chance, at most."""
        return min(self.undefined_p, float(self.p_values.min(initial=1)))

    @property
    def score(self) -> float:
        """That of the p-value."""
        return score_of(self.p_value)

    def state(self, levels: Levels) -> State:
        """What the window is called at these levels."""
        if self.samples < LEAST_REQUESTS:
            return "unknown"
        if self.p_value <= levels.drift:
            return "drift"
        return "warning" if self.p_value <= levels.warning or self.strange else "ok"


def score_of(p_value: float) -> float:
    """-log10 of a p-value, 300 at most."""
    return -math.log10(max(p_value, 10.0**-_MAX_SCORE)) + 0.0  # no negative zero


def two_sided(deviates: Floats) -> Floats:
    """p-values of standard normal deviates, of any sign; 1 for NaN."""
    return np.array([1.0 if math.isnan(each) else math.erfc(abs(each) / math.sqrt(2)) for each in deviates.tolist()])


def wilson_hilferty(mean_square: Floats, degrees: Floats) -> Floats:
    """The standard normal deviates of chi-squared variates that are given divided by their degrees of freedom."""
    variance = 2 / (9 * degrees)
    return np.asarray((np.cbrt(mean_square) - (1 - variance)) / np.sqrt(variance), dtype=np.float64)


def _hypergeometric_tail(found: int, samples: int, known: int, reference: int) -> float:
    """Chance that of all undefined samples of both, spread at random over both, so many or more are in the window."""
    if not found:
        return 1.0
    bad, everything = found + known, samples + reference
    chances = [
        math.exp(_log_choose(bad, k) + _log_choose(everything - bad, samples - k) - _log_choose(everything, samples))
        for k in range(found, min(bad, samples) + 1)
        if samples - k <= everything - bad
    ]
    return min(math.fsum(chances), 1.0)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
