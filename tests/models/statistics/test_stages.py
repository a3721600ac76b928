"""Histograms, quantiles and the normalized value of one sample, against numpy and torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.instrument.formulas import Formula
from models.statistics.distribution import BINS, PERCENTS, distribution
from models.statistics.normalized import normalize
from models.statistics.stages import describe_stages
from tests.models.statistics.test_layers import TOKENS
from tests.oracle import assert_side


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_histogram_and_quantiles_by_their_definition(kind: type[np.floating]) -> None:
    """64 bins of one width over the range hold every element once; the quantiles are numpy's in float64."""
    x = np.random.default_rng(0).normal(3, 2, (4, 50)).astype(kind)
    told = distribution(x)
    counts, edges = told["histogram"]["counts"], told["histogram"]["edges"]
    assert (len(counts), len(edges), sum(counts)) == (BINS, BINS + 1, x.size)
    np.testing.assert_allclose([edges[0], edges[-1]], [x.min(), x.max()])
    np.testing.assert_allclose(np.diff(edges), (float(x.max()) - float(x.min())) / BINS)
    for i in range(BINS):
        below = x.astype(np.float64) <= edges[i + 1] if i == BINS - 1 else x.astype(np.float64) < edges[i + 1]
        assert sum(counts[: i + 1]) == below.sum()
    expected = np.percentile(x.astype(np.float64), PERCENTS)
    np.testing.assert_allclose([told["quantiles"][str(percent)] for percent in PERCENTS], expected)


@pytest.mark.parametrize("value", [0.0, 1e4, -3e38, 1e-40])
def test_equal_elements_have_a_histogram(value: float) -> None:
    """A constant tensor lies in one bin, whose edges enclose it, however large or small it is."""
    told = distribution(np.full(10, value, np.float32))
    counts, edges = told["histogram"]["counts"], told["histogram"]["edges"]
    bin_ = counts.index(10)
    assert edges[bin_] <= np.float32(value) <= edges[bin_ + 1]
    assert edges == sorted(edges)
    assert set(told["quantiles"].values()) == {float(np.float32(value))}


def test_neighbouring_numbers_have_a_histogram() -> None:
    """A range of one step of float64 is widened instead of failing."""
    told = distribution(np.array([1.0, np.nextafter(1.0, 2)]))
    assert sum(told["histogram"]["counts"]) == 2


def test_the_whole_range_of_float32() -> None:
    """Elements at both ends of float32 do not overflow."""
    top = np.finfo(np.float32).max
    told = distribution(np.array([-top, 0, top], np.float32))
    assert sum(told["histogram"]["counts"]) == 3
    assert told["quantiles"]["50"] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_neither(bad: float) -> None:
    """One NaN or infinity makes both null, as it does the other statistics."""
    assert distribution(np.array([1, bad, 2])) == {"histogram": None, "quantiles": None}


def test_all_three_stages_of_a_normalization() -> None:
    """before, normalized and after have their distributions, `normalized` its statistics too."""
    rng = np.random.default_rng(0)
    before = rng.normal(5, 3, (1, 5, 4)).astype(np.float32)
    normalized = F.layer_norm(torch.from_numpy(before), (4,)).numpy()
    after = (normalized * 0 + 2).astype(np.float32)  # gamma 0: what was normalized cannot be had from after
    told = describe_stages(TOKENS, {"before": before, "after": after}, Formula(1e-5, axes=(-1,)))
    assert set(told) == {"before", "normalized", "after"}
    assert_side(told["normalized"], normalized[0], "normalized")
    for side, x in {"before": before, "normalized": normalized, "after": after}.items():
        expected = np.percentile(x[0].astype(np.float64), PERCENTS)
        np.testing.assert_allclose(list(told[side]["quantiles"].values()), expected, atol=1e-5)


def test_the_sample_has_one_nan() -> None:
    """NaN before: normalized is null where the NaN spreads, and counts it; nothing raises."""
    before = np.ones((1, 5, 4), np.float32)
    before[0, 1, 2] = np.nan
    told = describe_stages(TOKENS, {"before": before, "after": before}, Formula(1e-5, axes=(-1,)))
    assert told["normalized"]["nonfinite"] == 4  # of that token
    assert told["normalized"]["mean"] is None
    assert told["normalized"]["histogram"] is None


def test_large_means_keep_their_digits() -> None:
    """Mean 1e4 and deviation 1: computed in float64, the normalized value is that of the float32 elements to 1e-6."""
    x = np.random.default_rng(0).normal(1e4, 1, (2, 8, 50)).astype(np.float32)
    expected = F.group_norm(torch.from_numpy(x.astype(np.float64)), 4).numpy()
    np.testing.assert_allclose(normalize(x, Formula(1e-5, groups=4)), expected, atol=1e-6)
