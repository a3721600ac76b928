"""The classification extension: order, count and format."""

import numpy as np

from service.api.oip.classification import classify


def test_best_classes_first() -> None:
    """`value:index:label` with six decimals, the best first, the lower index first among equals, row by row."""
    logits = np.array([[0.5, 2.0, -1.25], [1.0, 1.0, 0.0]], np.float32)
    assert classify(logits, 2, ["cat", "dog", "a:b"]) == ["2.000000:1:dog", "0.500000:0:cat", "1.000000:0:cat", "1.000000:1:dog"]


def test_at_most_all_classes() -> None:
    """More classes than there are give all."""
    assert classify(np.array([[0.0, 3e8]], np.float32), 9, ["a", "b"]) == ["300000000.000000:1:b", "0.000000:0:a"]


def test_values_that_are_not_finite_are_written() -> None:
    """NaN comes last and is written as C does."""
    logits = np.array([[np.nan, -np.inf, np.inf]], np.float32)
    assert classify(logits, 3, ["a", "b", "c"]) == ["inf:2:c", "-inf:1:b", "nan:0:a"]
