"""How far the values of single requests in one stretch of time lie from those in another. The request is the sampling unit.

All measures are for many quantities at once: arrays (V,), NaN where a stretch has too few values. a is compared with b.
"""

from dataclasses import dataclass

import numpy as np

from models.statistics.moments import Floats, Moments
from service.statistics.sketches import Sketches

BINS = 10
_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
_FLOOR = 1e-12
_RANKS = (np.arange(512) + 0.5) / 512


@dataclass(frozen=True)
class Comparison:
    """Measures of V quantities.

    Attributes:
        requests_a: values in a.
        requests_b: values in b.
        mean_a: of the values in a.
        mean_b: of the values in b.
        effect: standardized mean difference, (mean_a - mean_b) / pooled standard deviation.
        effect_low: lower end of its 95 % interval.
        effect_high: upper end.
        variance_ratio: variance in a over variance in b, both sample variances.
        divergence: KL(a||b) + KL(b||a) of the Gaussians with these means and variances, nats.
        stability: population stability index over the deciles of b.
        wasserstein: mean distance between equal quantiles, in the unit of the quantity.
    """

    requests_a: Floats
    requests_b: Floats
    mean_a: Floats
    mean_b: Floats
    effect: Floats
    effect_low: Floats
    effect_high: Floats
    variance_ratio: Floats
    divergence: Floats
    stability: Floats
    wasserstein: Floats


def compare(a: Moments, b: Moments, sketches_a: Sketches, sketches_b: Sketches) -> Comparison:
    """Compares V quantities; at least two values on each side are needed for those with variances, one for the others.

    Variances are taken as at least 1e-12 s^2, with s^2 the mean square of all values of both sides, so that quantities without
    spread give large numbers and not infinite ones.

    Source: the interval of the effect from Hedges & Olkin 1985, "Statistical Methods for Meta-Analysis", section 5.B, equation 8.
    """
    n_a, n_b = a.count, b.count
    known = (n_a >= 2) & (n_b >= 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        square = (a.m2 + n_a * a.mean**2 + b.m2 + n_b * b.mean**2) / (n_a + n_b)
        floor = np.maximum(_FLOOR * square, np.finfo(np.float64).tiny)
        var_a, var_b = np.maximum(a.m2 / (n_a - 1), floor), np.maximum(b.m2 / (n_b - 1), floor)
        difference = a.mean - b.mean
        pooled = np.maximum((a.m2 + b.m2) / (n_a + n_b - 2), floor)
        effect = difference / np.sqrt(pooled)
        error = np.sqrt((n_a + n_b) / (n_a * n_b) + effect**2 / (2 * (n_a + n_b)))
        # log var_a / var_b cancels in the sum of both directions
        divergence = (var_a + difference**2) / (2 * var_b) + (var_b + difference**2) / (2 * var_a) - 1
    hide = np.where(known, 1.0, np.nan)
    distance = np.abs(sketches_a.quantiles(_RANKS) - sketches_b.quantiles(_RANKS)).mean(axis=1)
    return Comparison(
        requests_a=n_a,
        requests_b=n_b,
        mean_a=np.where(n_a > 0, a.mean, np.nan),
        mean_b=np.where(n_b > 0, b.mean, np.nan),
        effect=effect * hide,
        effect_low=(effect - _Z95 * error) * hide,
        effect_high=(effect + _Z95 * error) * hide,
        variance_ratio=var_a / var_b * hide,
        divergence=divergence * hide,
        stability=_stability(sketches_a, sketches_b),
        wasserstein=distance,
    )


def _stability(a: Sketches, b: Sketches) -> Floats:
    """Population stability index: sum of (p - q) log(p / q) over the bins, with 0.5 added to each count."""
    counts_a, counts_b = a.counts, b.counts
    edges = b.quantiles(np.arange(1, BINS) / BINS)
    index = np.full(a.size, np.nan)
    for i in np.flatnonzero((counts_a > 0) & (counts_b > 0)).tolist():
        distinct = np.unique(edges[i])  # values that repeat leave bins empty on both sides; these add nothing
        p, q = (
            (sketch.shares(i, distinct) * count + 0.5) / (count + 0.5 * (len(distinct) + 1))
            for sketch, count in ((a, counts_a[i]), (b, counts_b[i]))
        )
        index[i] = np.sum((p - q) * np.log(p / q))
    return index
