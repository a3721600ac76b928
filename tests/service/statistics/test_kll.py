"""KLL sketches as arrays: the same as the library's, read, written, merged and asked for quantiles."""

import numpy as np
import pytest

from models.statistics.moments import Floats
from service.statistics.kll import EvenSketches, UnevenError, Words
from service.statistics.sketches import K, Sketches, joined

_COUNTS = [0, 1, 2, 127, 128, 129, 300, 5000]
_QUANTITIES = 6


def _values(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, _QUANTITIES)).astype(np.float32).astype(np.float64)


def _made(values: Floats) -> Sketches:
    sketches = Sketches(_QUANTITIES)
    sketches.update(values)
    return sketches


def _words(sketches: Sketches) -> Words:
    return np.stack([np.frombuffer(each, "<u4") for each in sketches.serialized()])


def _library(even: EvenSketches) -> Sketches:
    words = even.to_words(K)
    return Sketches.from_bytes(joined([each.tobytes() for each in words]), len(words))


@pytest.mark.parametrize("n", _COUNTS)
def test_quantiles_are_those_of_the_library(n: int) -> None:
    """Of any number of values and at any rank, also where a rank falls between two of them."""
    ranks = [0.0, 1e-9, 0.1, 0.25, 1 / 3, 0.5, 0.9, 0.99, 1.0]
    sketches = _made(_values(n))
    found = EvenSketches.of_words(_words(sketches), K).quantiles(ranks)
    np.testing.assert_array_equal(found, sketches.quantiles(ranks))


@pytest.mark.parametrize("n", _COUNTS)
def test_what_is_written_is_what_was_read(n: int) -> None:
    """But for the flag that the lowest level happens to be sorted."""
    words = _words(_made(_values(n)))
    written = EvenSketches.of_words(words, K).to_words(K)
    np.testing.assert_array_equal(written[:, 1:], words[:, 1:])
    assert {int(each) for each in (written[:, 0] ^ words[:, 0])} <= {0, 1 << 25}


@pytest.mark.parametrize("counts", [[1, 1], [0, 1], [0, 0], [1, 0, 127], [60, 68], [5] * 300, [300, 0, 1, 5000], [3300] * 12])
def test_merged_sketches_hold_all_values(counts: list[int]) -> None:
    """Number and extremes are exact, and so is all up to 128 values; else ranks are off by no more than is stated. The library
    reads what was merged, and adds to it.
    """
    parts = [_values(n, seed) for seed, n in enumerate(counts)]
    merged = EvenSketches.merged([EvenSketches.of_words(_words(_made(part)), K) for part in parts], K)
    everything, n = np.sort(np.concatenate(parts), axis=0), sum(counts)
    read = _library(merged)
    assert read.counts.tolist() == [n] * _QUANTITIES
    ranks = np.linspace(0, 1, 51)
    found = merged.quantiles(ranks)
    np.testing.assert_array_equal(found, read.quantiles(ranks))
    if n:
        np.testing.assert_array_equal(found[:, [0, -1]], everything[[0, -1]].T)
        if n <= K:
            np.testing.assert_array_equal(found, np.quantile(everything, ranks, axis=0, method="inverted_cdf").T)
        for column, quantiles in zip(everything.T, found, strict=True):
            assert np.abs(np.searchsorted(column, quantiles, "right") / n - ranks).max() <= 0.021 + 1 / n
    read.update(_values(2000, seed=99))
    read.merge(_library(merged))
    assert read.counts.tolist() == [2 * n + 2000] * _QUANTITIES


def test_merging_has_the_error_of_the_library() -> None:
    """Over many merges the error of a rank is within what is stated in 99 of 100 sketches, and it leans to neither side."""
    quantities, parts, n = 400, 40, 60
    ranks = np.arange(1, 100) / 100
    rng = np.random.default_rng(0)
    values = rng.permuted(np.tile(np.arange(parts * n, dtype=np.float64), (quantities, 1)), axis=1).T
    made = []
    for part in np.split(values, parts):
        sketches = Sketches(quantities)
        sketches.update(part)
        made.append(EvenSketches.of_words(_words(sketches), K))
    off = (EvenSketches.merged(made, K).quantiles(ranks) + 1) / (parts * n) - ranks
    assert np.quantile(np.abs(off).max(axis=1), 0.99) <= 0.021
    assert abs(off.mean()) <= 0.001


def test_sketches_of_several_shapes_are_refused() -> None:
    """Those of other counts, of another accuracy, and whatever is no sketch are left to the library."""
    words = _words(_made(_values(40)))
    broken = words.copy()
    broken[:, 2] = 41
    uneven = words.copy()
    uneven[2, 2] = 41
    for each in (broken, uneven, np.zeros_like(words), np.full_like(words, 0xFFFFFFFF), words[:, :1], words[:, :7], words[:, :0]):
        with pytest.raises(UnevenError):
            EvenSketches.of_words(each, K)
    with pytest.raises(UnevenError):
        EvenSketches.of_words(words, 200)
