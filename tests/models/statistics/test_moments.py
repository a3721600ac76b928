import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.statistics.moments import Moments, channel_moments, sample_dot
from tests.oracle import expected_side

_VALUES = st.floats(-1e6, 1e6, width=32)


def _summary(moments: Moments, row: tuple[int, ...]) -> dict[str, float]:
    return {
        "count": moments.count[row],
        "mean": moments.mean[row],
        "var": moments.var[row],
        "min": moments.minimum[row],
        "max": moments.maximum[row],
        "l2": moments.l2[row],
        "zeros": moments.zeros[row] / moments.count[row],
    }


def _assert_close(moments: Moments, row: tuple[int, ...], tensor: np.ndarray) -> None:
    """The reductions alone: 1e-5 max(|ref|, s), var 1e-3 relative (or 1e-10 s^2 where it is nothing but rounding)."""
    expected = expected_side(tensor)
    s = np.sqrt((tensor.astype(np.float64) ** 2).mean())
    for name, value in _summary(moments, row).items():
        tolerance = 1e-3 * expected["var"] + 1e-10 * s**2 if name == "var" else 1e-5 * max(abs(expected[name]), s)
        assert abs(value - expected[name]) <= tolerance, name


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1e4, 1.0), (-1e4, 1.0), (0.0, 1e-20), (3.0, 0.0), (0.0, 1e20)])
def test_agrees_with_float64_where_it_is_hard(mean: float, std: float) -> None:
    """Large means, tiny and huge scales and constants: every statistic stays within the tolerance of the reductions."""
    x = (mean + std * np.random.default_rng(0).standard_normal((2, 3, 40, 40))).astype(np.float32)
    moments = channel_moments(x, channel_axis=1)
    for n in range(2):
        for c in range(3):
            _assert_close(moments, (n, c), x[n, c])
        _assert_close(moments.pool(axis=1), (n,), x[n])


def test_channels_of_the_last_axis() -> None:
    """With channel_axis=2 a channel is a feature over all tokens."""
    x = np.random.default_rng(1).standard_normal((2, 7, 5)).astype(np.float32)
    moments = channel_moments(x, channel_axis=2)
    assert moments.mean.shape == (2, 5)
    np.testing.assert_allclose(moments.mean, x.mean(1), atol=1e-6)
    np.testing.assert_allclose(moments.var, x.var(1), rtol=1e-5)


def test_padding_does_not_exist() -> None:
    """Masked positions change nothing, whatever lies there: not the count, not the extremes, not even a NaN."""
    x = np.random.default_rng(2).standard_normal((2, 6, 4)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=bool)
    x[0, 4:] = np.nan
    moments = channel_moments(x, channel_axis=2, mask=mask).pool(axis=1)
    _assert_close(moments, (0,), x[0, :4])
    _assert_close(moments, (1,), x[1])
    assert moments.nonfinite.tolist() == [0, 0]


@pytest.mark.parametrize("position", [(0, 0), (3, 5), (7, 7)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_nonfinite_value_is_found_anywhere(position: tuple[int, int], value: float) -> None:
    """One NaN or infinity at any position is counted, in its channel alone, and blanks that channel's other statistics."""
    x = np.ones((1, 2, 8, 8), np.float32)
    x[(0, 1, *position)] = value
    moments = channel_moments(x, channel_axis=1)
    assert moments.nonfinite.tolist() == [[0, 1]]
    assert moments.mean[0, 0] == 1
    assert np.isnan(moments.mean[0, 1])
    assert moments.pool(axis=1).nonfinite.tolist() == [1]


def test_an_all_infinite_channel() -> None:
    """A channel of nothing but -inf is counted in full and raises no warning."""
    x = np.zeros((1, 2, 4, 4), np.float32)
    x[0, 0] = -np.inf
    assert channel_moments(x, channel_axis=1).nonfinite.tolist() == [[16, 0]]


def test_zeros_are_exact_zeros() -> None:
    """Zeros count 0.0 and -0.0 but not the smallest subnormal."""
    x = np.array([[[0.0, -0.0, 1e-45, 1.0]]], np.float32)
    assert channel_moments(x, channel_axis=1).zeros.tolist() == [[2]]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    """The same sample alone and among others gives identical numbers."""
    x = np.random.default_rng(3).standard_normal((5, 4, 9, 9)).astype(np.float32)
    alone, among = channel_moments(x[2:3], 1), channel_moments(x, 1)
    np.testing.assert_array_equal(alone.m2[0], among.m2[2])
    np.testing.assert_array_equal(alone.mean[0], among.mean[2])


@settings(max_examples=60, deadline=None)
@given(st.lists(hnp.arrays(np.float32, st.integers(1, 20), elements=_VALUES), min_size=1, max_size=5), st.randoms())
def test_merging_equals_the_concatenation_in_any_order(parts: list[np.ndarray], random: object) -> None:
    """Merging is associative and commutative: any order gives the moments of all elements together."""
    moments = [channel_moments(part[None, None], 1) for part in parts]
    everything = np.concatenate(parts).astype(np.float64)
    forward, backward = Moments.empty((1, 1)), Moments.empty((1, 1))
    for part in moments:
        forward = forward.merge(part)
    for part in reversed(moments):
        backward = part.merge(backward)
    scale = max(np.abs(everything).max(), 1e-30)
    for merged in (forward, backward):
        assert merged.count[0, 0] == len(everything)
        assert merged.minimum[0, 0] == everything.min()
        assert merged.maximum[0, 0] == everything.max()
        assert abs(merged.mean[0, 0] - everything.mean()) <= 1e-5 * scale
        assert abs(merged.var[0, 0] - everything.var()) <= 1e-5 * scale**2


def test_dot_of_huge_values_does_not_overflow() -> None:
    """The dot product survives values whose products leave float32."""
    a = np.full((1, 2, 3), 1e30, np.float32)
    np.testing.assert_allclose(sample_dot(a, a), [6e60], rtol=1e-6)


def test_dot_of_half_precision_is_summed_in_single() -> None:
    """As many products of halves as half precision cannot add: as numpy has it in double precision, within 1e-5."""
    a, b = (np.random.default_rng(seed).uniform(1, 2, (2, 64, 96)).astype(np.float16) for seed in (6, 7))
    expected = (a.astype(np.float64) * b.astype(np.float64)).sum((1, 2))
    np.testing.assert_allclose(sample_dot(a, b), expected, rtol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((1, 0, 5), 2), ((2, 3, 0), 1), ((2, 4, 0, 7), 1), ((2, 3, 0), 2), ((0, 3, 4), 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_tensor_of_no_elements(shape: tuple[int, ...], axis: int, *, masked: bool) -> None:
    """No tokens, pixels, channels or samples: the moments of nothing, which add nothing to others; the dot product is 0."""
    x = np.zeros(shape, np.float32)
    positions = int(np.prod(shape[1:])) // shape[axis] if shape[axis] else 3
    mask = np.zeros((shape[0], positions), bool) if masked else None
    moments = channel_moments(x, axis, mask)
    for name, value in vars(Moments.empty((shape[0], shape[axis]))).items():
        np.testing.assert_array_equal(getattr(moments, name), value)
    assert moments.pool(axis=1).count.tolist() == [0] * shape[0]
    assert sample_dot(x, x, mask, axis).tolist() == [0] * shape[0]


def test_dot_leaves_padding_out() -> None:
    """Masked tokens do not take part, NaN or not."""
    a = np.ones((1, 3, 2), np.float32)
    a[0, 2] = np.nan
    assert sample_dot(a, a, np.array([[True, True, False]])).tolist() == [4.0]


@pytest.mark.parametrize("shape", [(2, 3, 1), (1, 5, 3), (2, 4, 35), (1, 2, 127), (3, 2, 128), (1, 3, 1025)])
def test_rows_of_any_length(shape: tuple[int, int, int]) -> None:
    """Whatever is left over after the vectors of the machine counts like the rest."""
    x = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    moments = channel_moments(x, channel_axis=1)
    for n in range(shape[0]):
        for c in range(shape[1]):
            _assert_close(moments, (n, c), x[n, c])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions(dtype: type[np.floating]) -> None:
    """Half and double precision are reduced as what they are, in any memory order."""
    x = np.asfortranarray(np.random.default_rng(5).standard_normal((2, 3, 8, 8)).astype(dtype))
    moments = channel_moments(x, channel_axis=1)
    for n in range(2):
        _assert_close(moments.pool(axis=1), (n,), x[n])
