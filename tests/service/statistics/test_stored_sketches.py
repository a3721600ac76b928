"""Stored sketches merged and asked for quantiles without the library: the same as with it, whatever shapes they have."""

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import pytest

from models.statistics.moments import Floats
from service.statistics.sketches import Sketches
from service.statistics.stored_sketches import merge_stored, stored_quantiles

_SIZE = 40
_RANKS = [0.0, 0.2, 0.5, 1.0]


def _windows(counts: list[int]) -> list[Floats]:
    """Values of windows: of quantity 3 none, of quantities 5 to 12 some are unknown in the second window, of 20 in all."""
    rng = np.random.default_rng(0)
    windows = [rng.standard_normal((n, _SIZE)).astype(np.float32).astype(np.float64) for n in counts]
    for i, window in enumerate(windows):
        window[:, 3] = np.nan
        if i == 1:
            window[::2, 5:13] = np.nan
        window[: i % 3, 20] = np.nan
    return windows


def _stored(windows: list[Floats]) -> list[bytes]:
    made = []
    for window in windows:
        sketches = Sketches(_SIZE)
        sketches.update(window)
        made.append(sketches.to_bytes())
    return made


@pytest.mark.parametrize("chosen", [None, [7, 3, 20, 0, 1, 39], [5], []])
@pytest.mark.parametrize("counts", [[], [12], [7, 20, 9, 30], [1, 1], [400, 900, 3]])
def test_all_values_are_merged(counts: list[int], chosen: list[int] | None) -> None:
    """Each quantity has the values that are known of it, in the order in which it was chosen; exactly for so few."""
    windows = _windows(counts)
    quantities = range(_SIZE) if chosen is None else chosen
    values = np.concatenate([np.empty((0, _SIZE)), *windows])[:, quantities]
    merged = Sketches.from_bytes(merge_stored(_stored(windows), _SIZE, chosen), len(quantities))
    assert merged.counts.tolist() == np.isfinite(values).sum(axis=0).tolist()
    ranks = _RANKS if len(values) <= 128 else [0.0, 1.0]
    for column, found in zip(values.T, merged.quantiles(ranks), strict=True):
        known = column[np.isfinite(column)]
        expected = np.quantile(known, ranks, method="inverted_cdf") if len(known) else np.full(len(ranks), np.nan)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("chosen", [list(range(_SIZE)), [7, 3, 20, 0, 1, 39], [5], []])
@pytest.mark.parametrize("n", [0, 1, 40, 1000])
def test_quantiles_are_those_of_the_library(n: int, chosen: list[int]) -> None:
    """Whatever is unknown."""
    blob = _stored(_windows([0, n]))[1]
    expected = Sketches.from_bytes(blob, _SIZE, chosen).quantiles(_RANKS)
    np.testing.assert_array_equal(stored_quantiles(blob, _SIZE, chosen, _RANKS), expected)


def test_what_is_broken_is_refused() -> None:
    """Bytes changed, cut off or put in anywhere: a ValueError, before the library sees what could end the process."""
    whole, other = _stored(_windows([0, 150]))[1], _stored(_windows([30]))[0]
    rng = np.random.default_rng(0)
    for place, bit in product(range(8 + 4 * _SIZE), range(8)):
        blob = bytearray(whole)
        blob[place] ^= 1 << bit
        assert _refuses(partial(Sketches.from_bytes, bytes(blob), _SIZE))
    for _ in range(300):
        blob = bytearray(whole)
        place = int(rng.integers(0, 4 * _SIZE + 100) if rng.random() < 0.7 else rng.integers(0, len(blob)))
        kind = rng.integers(0, 4)
        if kind == 0:
            del blob[place:]
        elif kind == 1:
            blob[place:place] = b"\0" * int(rng.integers(1, 9))
        else:
            blob[place] ^= int(rng.integers(1, 256))
        broken = bytes(blob)
        assert _refuses(partial(Sketches.from_bytes, broken, _SIZE))
        assert _refuses(partial(merge_stored, [other, broken], _SIZE))
        assert _refuses(partial(stored_quantiles, broken, _SIZE, range(_SIZE), _RANKS))


def _refuses(read: Callable[[], object]) -> bool:
    try:
        read()
    except ValueError:
        return True
    return False
