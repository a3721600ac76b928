import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from service.statistics.comparison import BINS, compare
from service.statistics.sketches import Sketches
from service.statistics.window import single_values

Values = NDArray[np.float64]


def _compared(a: Values, b: Values) -> dict[str, float]:
    """All measures of one quantity, the values a (N,) against b (M,)."""
    sketch_a, sketch_b = Sketches(1), Sketches(1)
    sketch_a.update(a[:, None])
    sketch_b.update(b[:, None])
    moments_a, moments_b = (single_values(values[:, None]).pool(axis=0) for values in (a, b))
    return {name: float(column[0]) for name, column in vars(compare(moments_a, moments_b, sketch_a, sketch_b)).items()}


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.7, 1.0), (-2.0, 3.0), (0.0, 0.2)])
def test_measures_agree_with_numpy_and_scipy(shift: float, scale: float) -> None:
    """Each measure is the textbook's, within the error of the sketches where it is made of quantiles."""
    rng = np.random.default_rng(1)
    a, b = shift + scale * rng.standard_normal(100), rng.standard_normal(120)  # so few that the sketches hold all of them
    found = _compared(a, b)
    pooled = np.sqrt((99 * a.var(ddof=1) + 119 * b.var(ddof=1)) / 218)
    effect = (a.mean() - b.mean()) / pooled
    assert found["effect"] == pytest.approx(effect)
    assert found["effect"] == pytest.approx(stats.ttest_ind(a, b).statistic * np.sqrt(1 / 100 + 1 / 120))
    half = stats.norm.ppf(0.975) * np.sqrt(220 / (100 * 120) + effect**2 / (2 * 220))
    assert (found["effect_low"], found["effect_high"]) == pytest.approx((effect - half, effect + half))
    assert found["variance_ratio"] == pytest.approx(a.var(ddof=1) / b.var(ddof=1))
    va, vb, d = a.var(ddof=1), b.var(ddof=1), a.mean() - b.mean()
    one = 0.5 * (np.log(vb / va) + (va + d**2) / vb - 1)
    other = 0.5 * (np.log(va / vb) + (vb + d**2) / va - 1)
    assert found["divergence"] == pytest.approx(one + other)
    assert found["wasserstein"] == pytest.approx(stats.wasserstein_distance(a, b), abs=0.02 * max(scale, 1))
    edges = np.quantile(np.float32(b), np.arange(1, BINS) / BINS, method="inverted_cdf")
    p, q = ((np.bincount(np.searchsorted(edges, np.float32(x)), minlength=BINS) + 0.5) / (len(x) + BINS / 2) for x in (a, b))
    assert found["stability"] == pytest.approx(np.sum((p - q) * np.log(p / q)))


def test_the_interval_covers_the_true_effect() -> None:
    """Of 400 pairs of samples with a true effect of 0.5, the 95 % interval holds it in 92 to 98 % of all."""
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((60, 400)) + 0.5, rng.standard_normal((80, 400))
    nothing = Sketches(400)
    found = compare(single_values(a).pool(axis=0), single_values(b).pool(axis=0), nothing, nothing)
    covered = ((found.effect_low <= 0.5) & (found.effect_high >= 0.5)).mean()
    assert 0.92 <= covered <= 0.98


def test_large_samples_stay_within_the_error_of_the_sketches() -> None:
    """With 20,000 values on each side the measures made of quantiles are off by no more than the sketches allow."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.5, 1, 20_000), rng.normal(0, 1, 20_000)
    found = _compared(a, b)
    assert found["wasserstein"] == pytest.approx(0.5, abs=0.1)
    edges = np.quantile(b, np.arange(1, BINS) / BINS)
    p, q = (np.bincount(np.searchsorted(edges, x), minlength=BINS) / 20_000 for x in (a, b))
    assert found["stability"] == pytest.approx(np.sum((p - q) * np.log(p / q)), abs=0.1)


def test_a_constant_does_not_divide_by_zero() -> None:
    """Values without spread give finite, large numbers where they differ, and no difference where they do not."""
    constant = np.full(50, 2.0)
    apart = _compared(constant, np.full(50, 3.0))
    assert all(np.isfinite(value) for value in apart.values())
    assert apart["effect"] < -1e5
    same = _compared(constant, constant)
    assert (same["effect"], same["divergence"], same["variance_ratio"], same["wasserstein"]) == (0, 0, 1, 0)
    assert same["stability"] == pytest.approx(0)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_values_are_unknown(count: int) -> None:
    """Without two values on each side there is no effect to tell, without one no distance."""
    found = _compared(np.full(1, 1.0 if count else np.nan), np.arange(10.0))
    assert np.isnan([found["effect"], found["variance_ratio"], found["divergence"]]).all()
    assert np.isnan(found["wasserstein"]) == (count == 0)
    assert (found["requests_a"], found["requests_b"]) == (count, 10)
