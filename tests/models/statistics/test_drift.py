"""The test of a window against a reference: right scores, exact merging, the promised rate of false alarms, and what is found."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from models.statistics.drift import (
    LEAST_REQUESTS,
    Levels,
    ReferenceRanks,
    WindowScores,
    WindowTest,
    normal_scores,
    two_sided,
    wilson_hilferty,
)

_SIDES, _ADDS = 2, 1
_QUANTITIES = 3 * _SIDES + 2 * _ADDS
_LEVELS = Levels.of(1)

Values = NDArray[np.float64]


def _values(n: int, seed: int = 0) -> Values:
    """Of n requests: independent quantities, every second of a skewed distribution."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n, _QUANTITIES))
    values[:, ::2] = rng.exponential(size=values[:, ::2].shape)
    return values


def _ranks(values: NDArray[np.floating[Any]]) -> ReferenceRanks:
    return ReferenceRanks.of(values, _SIDES)


def _tested(reference: ReferenceRanks, values: Values) -> WindowTest:
    return WindowTest.of(WindowScores.of(reference, values), reference)


def test_scores_are_normal_scores_of_mid_ranks() -> None:
    """Against scipy: of a value between, equal to and beyond those of the reference; NaN and infinities have none."""
    reference = _ranks(np.tile(np.array([1.0, 2, 2, 4])[:, None], _QUANTITIES))
    asked = np.array([0.0, 1, 1.5, 2, 3, 4, 9, np.nan, np.inf])
    twice = np.array([0, 1, 2, 4, 6, 7, 8])
    expected = stats.norm.ppf((twice + 1) / 10) / np.sqrt(np.mean(stats.norm.ppf(np.arange(1, 10, 2) / 10) ** 2))
    scores = reference.score(np.tile(asked[:, None], _QUANTITIES))
    np.testing.assert_allclose(scores[:7], np.tile(expected[:, None], _QUANTITIES), atol=1e-12)
    assert np.isnan(scores[7:]).all()


@pytest.mark.parametrize("known", [1, 2, 30, 1000])
def test_a_new_value_has_a_score_of_mean_0_and_mean_square_1(known: int) -> None:
    """Over the k + 1 places that it takes with equal chance."""
    scores = normal_scores(known)[::2]
    assert len(scores) == known + 1
    assert scores.mean() == pytest.approx(0, abs=1e-12)
    assert (scores**2).mean() == pytest.approx(1)


@given(st.lists(st.integers(0, 7), max_size=5), st.randoms(use_true_random=False))
def test_merging_parts_in_any_order_is_scoring_all_at_once(sizes: list[int], random: Any) -> None:
    """Also through the bytes in which parts are stored, and with undefined values."""
    reference = _ranks(_values(50))
    values = _values(sum(sizes), seed=1)
    values[::5, 1] = np.nan
    parts = np.split(values, np.cumsum(sizes)[:-1]) if sizes else []
    random.shuffle(parts)
    merged = WindowScores.empty(reference)
    for part in parts:
        stored = WindowScores.from_bytes(WindowScores.of(reference, part).to_bytes(), reference)
        assert stored is not None
        merged = merged.merge(stored)
    whole = WindowScores.of(reference, values)
    assert (merged.samples, merged.undefined) == (whole.samples, whole.undefined)
    for name in ("count", "total", "squares"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), atol=1e-9)


def test_scores_of_another_reference_are_none() -> None:
    """Nor does a blob of another size count: the layers are others."""
    reference, other = _ranks(_values(50)), _ranks(_values(50, seed=1))
    blob = WindowScores.of(reference, _values(5)).to_bytes()
    assert WindowScores.from_bytes(blob, reference) is not None
    assert WindowScores.from_bytes(blob, other) is None
    assert WindowScores.from_bytes(blob[:-8], reference) is None


@pytest.mark.parametrize(("samples", "requests"), [(200, 30), (200, 200), (300, 1000)])
def test_false_alarms_come_as_often_as_stated(samples: int, requests: int) -> None:
    """Reference and traffic drawn anew each time: single tests at 5 % fire in 5 %, all together at 10 % in at most 10 %.

    With the reference taken as exact, the tests of large windows fire several times as often.
    """
    location, scale, exact, family = [], [], [], []
    repetitions = 300
    for seed in range(repetitions):
        drawn = _values(samples + requests, seed)
        reference = _ranks(drawn[:samples])
        tested = _tested(reference, drawn[samples:])
        degrees = np.full(_QUANTITIES, 1 / (1 / samples + 1 / requests))
        location.append(two_sided(tested.effect * np.sqrt(degrees)))
        scale.append(two_sided(wilson_hilferty(tested.spread, degrees)))
        exact.append(two_sided(tested.effect * np.sqrt(requests)))
        family.append(tested.p_value)
    single = repetitions * _QUANTITIES
    for p_values in (location, scale):
        fired = int((np.array(p_values) <= 0.05).sum())
        assert stats.binomtest(fired, single, 0.05).pvalue > 1e-3, fired / single
    assert stats.binomtest(int((np.array(family) <= 0.1).sum()), repetitions, 0.1, "greater").pvalue > 1e-3
    if requests >= samples:
        assert (np.array(exact) <= 0.05).mean() > 0.1


@pytest.mark.parametrize(
    ("change", "which"), [(lambda x: x + 1.5, "location"), (lambda x: 3 * x, "scale"), (lambda x: 0.2 * x, "scale")]
)
def test_a_change_is_found_where_it_is(change: Any, which: str) -> None:
    """One quantity has moved, is wider or is narrower: it alone is significant, in the right test."""
    values = _values(100, seed=1)
    values[:, 3] = change(values[:, 3])
    tested = _tested(_ranks(_values(500)), values)
    assert tested.state(_LEVELS) == "drift"
    assert np.flatnonzero(tested.p_values <= _LEVELS.drift).tolist() == [3]
    assert getattr(tested, which)[3] == tested.p_value
    assert tested.score == pytest.approx(-np.log10(tested.p_value))


def test_more_requests_like_the_reference_are_no_drift() -> None:
    """Its own samples, at any number."""
    values = _values(500)
    for n in (LEAST_REQUESTS, 100, 500):
        tested = _tested(_ranks(values), values[:n])
        assert tested.state(_LEVELS) == "ok"
        assert 0 <= tested.score < 2


def test_below_30_requests_nothing_is_said() -> None:
    """However far they are."""
    reference = _ranks(_values(500))
    far = _values(LEAST_REQUESTS) + 100
    assert _tested(reference, far[:-1]).state(_LEVELS) == "unknown"
    assert _tested(reference, far).state(_LEVELS) == "drift"


def test_what_is_constant_does_not_alarm_by_rounding_but_by_a_change() -> None:
    """A quantity without spread, as after a norm without parameters: noise of another machine is no change, another value is."""
    values = _values(500)
    values[:, _SIDES] = 1 + 1e-7 * np.random.default_rng(2).standard_normal(500)
    reference = _ranks(values)
    window = _values(100, seed=1)
    window[:, _SIDES] = 1 + 3e-6
    assert _tested(reference, window).state(_LEVELS) == "ok"
    window[:, _SIDES] = 1.1
    tested = _tested(reference, window)
    assert np.flatnonzero(tested.p_values <= _LEVELS.drift).tolist() == [_SIDES]


@pytest.mark.parametrize(("found", "known"), [(1, 0), (3, 0), (3, 2), (30, 1), (5, 400)])
def test_undefined_requests_are_tested_exactly(found: int, known: int) -> None:
    """Against scipy's hypergeometric distribution, corrected for the number of tests; the quantity where they are is counted."""
    values, window = _values(500), _values(100, seed=1)
    values[:known, 2] = np.nan
    window[:found, 2] = np.inf
    tested = _tested(_ranks(values), window)
    expected = stats.hypergeom.sf(found - 1, 600, found + known, 100)
    assert tested.undefined_p == pytest.approx(min((2 * _QUANTITIES + 1) * expected, 1))
    assert tested.missing.tolist() == [0, 0, found, *[0] * (_QUANTITIES - 3)]


def test_a_single_request_with_nan_is_a_warning_and_many_are_drift() -> None:
    """Where the reference has none."""
    reference = _ranks(_values(500))
    values = _values(100, seed=1)
    values[0] = np.nan
    assert _tested(reference, values).state(_LEVELS) == "warning"
    values[:20] = np.nan
    assert _tested(reference, values).state(_LEVELS) == "drift"
    values[:] = np.nan
    assert _tested(reference, values).state(_LEVELS) == "drift"


@pytest.mark.parametrize("degrees", [29, 100, 700])
def test_wilson_and_hilferty_hold_far_in_the_tails(degrees: int) -> None:
    """Against chi-squared: down to 1e-8 on either side a p-value is not 30 % too small, and at most four times too large."""
    for tail in (1e-2, 1e-4, 1e-8):
        ends = np.array([stats.chi2.ppf(tail, degrees), stats.chi2.isf(tail, degrees)]) / degrees
        p_values = two_sided(wilson_hilferty(ends, np.full(2, float(degrees))))
        assert (p_values > 0.7 * 2 * tail).all(), p_values
        assert (p_values < 4 * 2 * tail).all(), p_values


def test_levels_are_the_stated_rate_over_a_month_of_windows() -> None:
    """One false alarm in 43,200 windows of a minute; a warning is 30 times as frequent; shorter windows are more."""
    assert Levels.of(1).drift == pytest.approx(1 / 43_200)
    assert Levels.of(1).warning == pytest.approx(30 / 43_200)
    assert Levels.of(2, window_s=30).drift == pytest.approx(1 / 43_200)
    assert Levels.of(1e9) == Levels(1, 1)
