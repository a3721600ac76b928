"""Which channels are looked at, and what is read of them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.statistics.channel_features import MOST_BYTES, ChannelFeatures, positive_parts
from models.statistics.layers import BatchReducer, RunOutputs, SideLayout
from models.statistics.moments import channel_moments
from tests.layers import image_layer

FEW = SideLayout(
    (image_layer("first", "batch_norm", 4), image_layer("add", "residual_add", 4), image_layer("last", "layer_norm", 8))
)
MANY = SideLayout(
    (
        image_layer("first", "batch_norm", 4),
        image_layer("second", "batch_norm", 4),
        image_layer("wide", "batch_norm", 1024),
        *(image_layer(f"add{i}", "residual_add", 6) for i in range(3)),
    )
)


def test_few_channels_are_all_looked_at() -> None:
    """The means after each normalization, each row a direction of its own."""
    channels = ChannelFeatures.of(FEW)
    assert [FEW.rows[row] for row in channels.rows] == [(FEW.layers[0], "after"), (FEW.layers[2], "after")]
    assert (channels.extents, channels.levels, channels.width, channels.rectified) == ((4, 8), 0, 12, False)


def test_of_many_channels_two_rows_are_looked_at() -> None:
    """The sum of the last add but one, and before the last of the narrowest batch normalizations."""
    channels = ChannelFeatures.of(MANY)
    assert [(layer.layer, side) for layer, side in (MANY.rows[row] for row in channels.rows)] == [
        ("add1", "sum"),
        ("second", "before"),
    ]
    assert (channels.extents, channels.levels, channels.width, channels.rectified) == ((6,), 8, 14, True)


@pytest.mark.parametrize("kind", ["layer_norm", "residual_add"])
def test_without_both_rows_none_is_looked_at(kind: str) -> None:
    """A large model without batch normalization, or one without residual adds."""
    without = {"layer_norm": MANY.layers[:3], "residual_add": (image_layer("wide", "layer_norm", 2000), *MANY.layers[3:])}[kind]
    assert ChannelFeatures.of(SideLayout(tuple(without))).width == 0


def test_a_reference_keeps_features_where_they_fit() -> None:
    """Two bytes for each sample and feature, 6 MiB in all."""
    channels = ChannelFeatures.of(FEW)
    assert channels.has_room(MOST_BYTES // 24)
    assert not channels.has_room(MOST_BYTES // 24 + 1)
    assert not ChannelFeatures(FEW).has_room(1)


def test_a_positive_part_is_that_of_a_normal_variable() -> None:
    """The mean of the positive parts of many normal numbers; of a constant itself, or 0 where it is negative; NaN of NaN."""
    x = np.random.default_rng(0).normal([[-3.0], [-0.5], [0.0], [0.5], [3.0]], [[1.0], [2.0], [1.0], [0.5], [1.0]], (5, 200_000))
    x[0] = -2
    moments = channel_moments(x[None].astype(np.float32)[..., None], 1)
    np.testing.assert_allclose(positive_parts(moments)[0], np.maximum(x, 0).mean(1), atol=0.01)
    constant = channel_moments(np.array([[[2.0], [-2.0], [0.0], [np.nan]]], np.float32)[..., None], 1)
    np.testing.assert_allclose(positive_parts(constant), [[2, 0, 0, np.nan]], atol=1e-12)


def test_what_is_read_is_that_of_the_activations() -> None:
    """Positive parts of the sum, then mean / rms and log std of the narrow row, all of each sample alone."""
    random = np.random.default_rng(1)
    tensors: dict[str, NDArray[np.float32]] = {
        tensor: random.normal(0.5, 2, (3, layer.channels or 0, 3, 3)).astype(np.float32)
        for layer in MANY.layers
        for tensor in layer.tensors.values()
    }
    observed = BatchReducer(MANY).reduce(RunOutputs(tensors), {"x": np.zeros((3, 1))})
    read = ChannelFeatures.of(MANY).read(observed)
    narrow = tensors["second.before"].astype(np.float64)
    mean, std = narrow.mean((2, 3)), narrow.std((2, 3))
    expected = [positive_parts(channel_moments(tensors["add1.sum"], 1)), mean / np.hypot(mean, std), np.log(std)]
    np.testing.assert_allclose(read, np.concatenate(expected, axis=1), rtol=1e-5, atol=1e-6)
    few = {name: tensor[:, :1].repeat(8 if name.startswith("last") else 4, axis=1) for name, tensor in _of_few(tensors).items()}
    means = ChannelFeatures.of(FEW).read(BatchReducer(FEW).reduce(RunOutputs(few), {"x": np.zeros((3, 1))}))
    np.testing.assert_allclose(means[:, 4:], few["last.after"].mean((2, 3)), rtol=1e-5)


def _of_few(tensors: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return {tensor: tensors["add0.sum"] for layer in FEW.layers for tensor in layer.tensors.values()}
