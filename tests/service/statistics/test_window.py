import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.statistics.moments import Floats
from models.statistics.request_values import request_values
from service.statistics.channels import ChannelMoments
from service.statistics.columns import side_columns, value_columns
from service.statistics.window import WindowMoments, single_values
from tests.service.statistics.made import LAYOUT, SERIES, TENSORS, Arrays, activations, batch, reduced

_SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=5)
_OFFSETS = st.sampled_from([0.0, 3.0, -1e4])


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _assert_windows_equal(one: WindowMoments, other: WindowMoments) -> None:
    for name in ("elements", "values"):
        for field, column in vars(getattr(one, name)).items():
            expected = getattr(getattr(other, name), field)
            scale = np.abs(expected[np.isfinite(expected)]).max(initial=1e-12)
            np.testing.assert_allclose(column, expected, rtol=1e-9, atol=1e-9 * scale, err_msg=f"{name}.{field}")
    np.testing.assert_array_equal(one.nonfinite_samples, other.nonfinite_samples)


@given(sizes=_SIZES, offset=_OFFSETS, seed=st.integers(0, 1000))
def test_merged_windows_are_those_of_all_data_together(sizes: list[int], offset: float, seed: int) -> None:
    """Whatever batches the requests came in, each side and each per-request value is what numpy says of all of them at once."""
    parts = [activations(n, seed + i, offset=offset) for i, n in enumerate(sizes)]
    window = WindowMoments.merged([WindowMoments.of(reduced(part)) for part in parts])
    together = {name: tensor.astype(np.float64) for name, tensor in _joined(parts).items()}
    sides, values = side_columns(window), value_columns(window.values)
    for row, name in TENSORS.items():
        x = together[name]
        s = np.sqrt((x**2).mean())
        expected = {"count": x.size, "mean": x.mean(), "std": x.std(), "min": x.min(), "max": x.max(), "zeros": (x == 0).mean()}
        for statistic, value in expected.items():
            assert sides[statistic][row] == pytest.approx(value, abs=1e-5 * max(abs(value), s)), statistic
        of_requests = {"mean": x.mean((1, 2)), "std": x.std((1, 2)), "l2": np.sqrt((x**2).sum((1, 2)))}
        for statistic, each in of_requests.items():
            column = SERIES.value_of(statistic, row)
            for measure, value in {"mean": each.mean(), "std": each.std(), "min": each.min(), "max": each.max()}.items():
                assert values[measure][column] == pytest.approx(value, abs=1e-5 * max(np.abs(each).max(), s)), (statistic, measure)
    ratio = np.linalg.norm(together["f"], axis=(1, 2)) / np.linalg.norm(together["b"], axis=(1, 2))
    assert values["mean"][SERIES.value_of("residual_ratio", 0)] == pytest.approx(ratio.mean(), rel=1e-5)


@given(sizes=_SIZES, offset=_OFFSETS, cut=st.integers(0, 5), seed=st.integers(0, 1000))
def test_merging_is_associative(sizes: list[int], offset: float, cut: int, seed: int) -> None:
    """Windows merged in groups, or one after the other from either end, are the same; an empty one changes nothing."""
    windows = [WindowMoments.of(batch(n, seed + i, offset=offset)) for i, n in enumerate(sizes)]
    empty = WindowMoments.empty(SERIES.sides, SERIES.adds)
    merged = WindowMoments.merged(windows)
    groups = [WindowMoments.merged([empty, *group]) for group in (windows[:cut], windows[cut:])]
    _assert_windows_equal(WindowMoments.merged(groups), merged)
    one_by_one = empty
    for window in reversed(windows):
        one_by_one = WindowMoments.merged([window, one_by_one])
    _assert_windows_equal(one_by_one, merged)


@given(starts=st.sets(st.integers(1, 5)), seed=st.integers(0, 1000))
def test_neighbours_are_pooled_as_they_are_merged(starts: set[int], seed: int) -> None:
    """A series by step holds in each step what merging the windows of the step gives."""
    windows = [WindowMoments.of(batch(2, seed + i)) for i in range(6)]
    stacked = WindowMoments.from_bytes([window.to_bytes() for window in windows], SERIES.sides, SERIES.adds)
    begins = [0, *sorted(starts)]
    pooled = stacked.pool_neighbours(np.array(begins))
    for i, (begin, end) in enumerate(zip(begins, [*begins[1:], 6], strict=True)):
        one = WindowMoments(
            type(pooled.elements)(*(column[i] for column in vars(pooled.elements).values())),
            pooled.nonfinite_samples[i],
            type(pooled.values)(*(column[i] for column in vars(pooled.values).values())),
        )
        _assert_windows_equal(one, WindowMoments.merged(windows[begin:end]))


def test_a_window_survives_storage_exactly() -> None:
    """What is read is what was written, number by number."""
    window = WindowMoments.of(batch(3, seed=0))
    read = WindowMoments.from_bytes([window.to_bytes()], SERIES.sides, SERIES.adds).pooled()
    _assert_windows_equal(read, window)
    with pytest.raises(ValueError, match="reshape"):
        WindowMoments.from_bytes([window.to_bytes()], SERIES.sides + 1, SERIES.adds)


def test_a_sample_with_nonfinite_elements_counts_apart() -> None:
    """A sample with an infinity counts on that side in `nonfinite` and nowhere else; the others are pooled exactly."""
    tensors = activations(3, seed=0)
    tensors["a"][1, 0, 0] = np.inf
    tensors["a"][1, 0, 1] = np.nan
    window = WindowMoments.of(reduced(tensors))
    sides, values = side_columns(window), value_columns(window.values)
    clean: NDArray[np.float64] = tensors["a"][[0, 2]].astype(np.float64)
    assert (sides["count"][0], sides["nonfinite"][0], sides["nonfinite_samples"][0]) == (clean.size, 2, 1)
    assert sides["mean"][0] == pytest.approx(clean.mean(), abs=1e-7)
    assert sides["var"][0] == pytest.approx(clean.var(), rel=1e-5)
    norms = np.sqrt((clean**2).sum((1, 2)))
    column = SERIES.value_of("l2", 0)
    assert values["mean"][column] == pytest.approx(norms.mean(), rel=1e-6)
    assert window.values.count[column] == 2
    assert sides["nonfinite_samples"][1] == 0
    assert sides["count"][1] == tensors["b"].size


@given(sizes=_SIZES, offset=_OFFSETS, seed=st.integers(0, 1000))
def test_channels_merge_as_numpy_does(sizes: list[int], offset: float, seed: int) -> None:
    """The channels of every side are those of all data together, also after storage."""
    parts = [activations(n, seed + i, offset=offset) for i, n in enumerate(sizes)]
    merged = ChannelMoments.merged([ChannelMoments.of(reduced(part)) for part in parts])
    read = ChannelMoments.from_bytes(merged.to_bytes())
    together = {name: tensor.astype(np.float64) for name, tensor in _joined(parts).items()}
    for row, name in TENSORS.items():
        x: Floats = together[name]
        s = np.sqrt((x**2).mean())
        for moments in (merged.row(row), read.row(row)):
            np.testing.assert_array_equal(moments.count, np.full(3, x.size / 3))
            np.testing.assert_allclose(moments.mean, x.mean((0, 2)), atol=1e-5 * s)
            np.testing.assert_allclose(np.sqrt(moments.var), x.std((0, 2)), atol=1e-4 * s)
            np.testing.assert_allclose(moments.minimum, x.min((0, 2)), atol=1e-6 * s)


def test_undefined_values_are_left_out() -> None:
    """NaN and infinities among the values of single requests count for nothing."""
    moments = single_values(np.array([[1.0, np.nan], [3.0, np.inf], [np.nan, np.nan]])).pool(axis=0)
    assert moments.count.tolist() == [2, 0]
    assert value_columns(moments)["mean"].tolist()[0] == 2
    assert np.isnan(value_columns(moments)["mean"][1])


def test_values_of_requests_are_in_the_order_of_the_series() -> None:
    """Each column is where the series says it is."""
    tensors = activations(2, seed=0)
    values = request_values(reduced(tensors))
    assert values.shape == (2, SERIES.values)
    for row, name in TENSORS.items():
        np.testing.assert_allclose(values[:, SERIES.value_of("mean", row)], tensors[name].mean((1, 2)), atol=1e-6)
        np.testing.assert_allclose(values[:, SERIES.value_of("l2", row)], np.linalg.norm(tensors[name], axis=(1, 2)), rtol=1e-5)
    assert len(LAYOUT.adds) == 1
    f, b = (tensors[name].reshape(2, -1) for name in "fb")
    cosine = (f * b).sum(1) / np.linalg.norm(f, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(values[:, SERIES.value_of("cosine", 0)], cosine, atol=1e-6)
