"""The simulation of false alarms tests windows as the service does."""

import numpy as np
import pytest

from models.statistics.drift import ReferenceRanks, WindowScores, WindowTest
from tests.benchmarks.false_alarms import Pool, poisson_interval


@pytest.mark.parametrize("requests", [30, 200])
def test_a_split_is_tested_as_the_service_does(requests: int) -> None:
    """With the reference ordered anew and values ranked one by one: the same effects and p-values, ties included."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((400, 8))
    values[:50, 1] = 0.5
    values = values.astype(np.float32)
    inside = np.zeros(400, bool)
    inside[rng.choice(400, requests, replace=False)] = True
    found = Pool(values, 2).test(inside)
    reference = ReferenceRanks.of(values[~inside], 2)
    expected = WindowTest.of(WindowScores.of(reference, values[inside].astype(float)), reference)
    assert (found.samples, found.undefined) == (requests, 0)
    np.testing.assert_allclose(found.effect, expected.effect, atol=1e-9)
    np.testing.assert_allclose(found.location, expected.location, rtol=1e-6)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=0.02)  # the spread of the ties is that of the whole pool
    assert found.p_value == pytest.approx(expected.p_value, rel=0.02)


def test_the_interval_is_the_known_one() -> None:
    """Of a count of 0 it ends at 3.69, of 10 it is 4.80 to 18.39 (Garwood's table)."""
    assert poisson_interval(0) == pytest.approx((0, 3.689), abs=1e-3)
    assert poisson_interval(10) == pytest.approx((4.795, 18.390), abs=1e-3)
