"""What is seen inside a running graph is what its tensors are, as read one by one and reduced by numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.artifact import Layer
from models.instrument.observers import DOMAIN, add_observers
from models.statistics.layers import BatchReducer, BatchStatistics, RunOutputs, SideLayout
from models.statistics.moments import Moments
from service.engine import graph as engine_graph
from service.engine.graph import watch
from service.engine.session import Session
from service.statistics.library import build, library
from tests.oracle import assert_pair, assert_side, expected_side

Array = NDArray[Any]


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operator as it runs on processors without AVX2."""
    path = tmp_path_factory.mktemp("plain") / "observe.so"
    build(path, "-DNORMSCOPE_PLAIN")
    return path


@pytest.fixture(autouse=True, params=["compiled", "plain", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, plain: Path) -> str:
    """Every test holds for the operator inside the graph, by the instructions of any processor, and for numpy outside."""
    if request.param == "numpy":
        monkeypatch.setattr(engine_graph, "library", lambda: None)
    elif library() is None:
        pytest.skip("observe.c is not compiled: no C compiler was found")
    elif request.param == "plain":
        monkeypatch.setattr(engine_graph, "library", lambda: plain)
    return str(request.param)


def layer(name: str, kind: str, tensors: dict[str, str], axis: int, mask: str | None = None, mask_axis: int = 1) -> Layer:
    """A probe on the given tensors."""
    unknown = dict.fromkeys(("shape", "epsilon", "gamma", "beta"))
    masked = {"mask": mask, "mask_axis": mask_axis}
    fields = {"layer": name, "kind": kind, "channel_axis": axis, "tensors": tensors, **masked, **unknown}
    return Layer.model_validate(fields)


NORM = layer("norm", "batch_norm", {"before": "before", "after": "after"}, axis=1)
ADD = layer("add", "residual_add", {"identity": "i", "residual": "after", "sum": "sum"}, axis=1)


def model_of(nodes: list[onnx.NodeProto], inputs: dict[str, Array], constants: dict[str, Array]) -> onnx.ModelProto:
    """A graph of these nodes with dynamic batch and extents; its output is `logits`."""
    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(x.dtype), ["batch", x.shape[1] if x.ndim == 4 else "length", *x.shape[2:]]
        )
        for name, x in inputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        values,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def block(x: Array, identity: Array, gamma: Array, beta: Array, mean: Array, var: Array) -> onnx.ModelProto:
    """relu(norm(conv(x)) + identity), where the convolution changes nothing."""
    channels = x.shape[1]
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["before"], group=channels),
        helper.make_node("BatchNormalization", ["before", "gamma", "beta", "mean", "var"], ["after"]),
        helper.make_node("Add", ["after", "i"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["logits"]),
    ]
    constants = {"gamma": gamma, "beta": beta, "mean": mean, "var": var, "weight": np.ones((channels, 1, 1, 1))}
    return model_of(nodes, {"x": x, "i": identity}, {name: value.astype(np.float32) for name, value in constants.items()})


def run(
    model: onnx.ModelProto, layers: tuple[Layer, ...], feed: dict[str, Array], *, channels: bool = True
) -> tuple[BatchStatistics, dict[str, Array]]:
    """The statistics of a run, and the tensors themselves from a run in which all are outputs."""
    layout = SideLayout(layers)
    tensors = [each.tensor for each in layout.reductions]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    prepared = watch(copy, ("logits",), "cpu", layout.reductions, layout.pairs)
    result = Session(prepared, 2).run(feed, channels=channels)
    outputs = RunOutputs(result.tensors, result.summary, result.channels)
    batch = BatchReducer(layout, prepared.observers).reduce(outputs, feed)
    shown = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value for value in [*shown.graph.value_info, *shown.graph.input]}
    model.graph.output.extend(types[name] for name in tensors)
    values = engine_graph.PreparedGraph(model.SerializeToString(), ("logits",), "cpu", tuple(tensors))
    return batch, dict(Session(values, 1).run(feed).tensors)


def assert_agrees(batch: BatchStatistics, layers: tuple[Layer, ...], tensors: dict[str, Array], *, channels: bool = True) -> None:
    """Every side of every sample, and of every channel, is that of its tensor."""
    for i in range(len(batch)):
        for described, each in zip(batch.sample(i).describe(layers, channels=channels), layers, strict=True):
            sides = {side: tensors[name][i] for side, name in each.tensors.items()}
            for side, tensor in sides.items():
                assert_one(described[side], tensor, f"{i}.{each.layer}.{side}")
                if channels:
                    by_channel = np.moveaxis(tensor, each.channel_axis - 1, 0)
                    for c, values in enumerate(by_channel):
                        one = {name: numbers[c] for name, numbers in described[side]["channels"].items()}
                        assert_one({"count": values.size, **one}, values, f"{i}.{each.layer}.{side}.{c}")
            if each.kind == "residual_add" and all(np.isfinite(tensor).all() for tensor in sides.values()):
                x, f = (sides[side].astype(np.float64).ravel() for side in ("identity", "residual"))
                if x.any() and f.any():
                    assert_pair(described, sides["identity"], sides["residual"], f"{i}")


def assert_one(described: dict[str, Any], tensor: Array, where: str) -> None:
    """One side: by its definition, or counted and otherwise null."""
    if np.isfinite(tensor).all():
        assert_side(described, tensor.astype(np.float32), where)
    else:
        assert described["nonfinite"] == (~np.isfinite(tensor)).sum(), where
        assert all(described[name] is None for name in ("mean", "var", "std", "min", "max", "l2", "zeros")), where


def normal(*shape: int, seed: int = 0) -> Array:
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("channels", [16, 5])  # blocked by ONNX Runtime, or not
@pytest.mark.parametrize("extent", [1, 7, 30])
def test_a_residual_block(channels: int, extent: int) -> None:
    """Every side of a norm and of the add that follows it, by channel and altogether, whatever the layout in memory."""
    x, identity = normal(3, channels, extent, extent), np.maximum(normal(3, channels, extent, extent, seed=1), 0)
    gamma, beta = normal(channels, seed=2), normal(channels, seed=3)
    model = block(x, identity, gamma, beta, normal(channels, seed=4), np.full(channels, 0.5))
    batch, tensors = run(model, (NORM, ADD), {"x": x, "i": identity})
    assert_agrees(batch, (NORM, ADD), tensors)


@pytest.mark.parametrize("channels", [16, 5])
@pytest.mark.parametrize(("gamma", "beta"), [(0, 0), (0, 0.5), (1e-6, 0), (1e-6, 0.5), (-2, 0.5), (1, 0), ("mixed", "mixed")])
def test_gamma_and_beta_that_are_hard(channels: int, gamma: float | str, beta: float | str) -> None:
    """gamma 0, tiny and negative and beta 0 in all channels or in some: both sides are exact, zeros included."""
    of = {"mixed": np.resize([0, 1e-6, -1, 2, 0], channels), 0.5: np.full(channels, 0.5)}
    scale, shift = (of[value] if value in of else np.full(channels, float(value)) for value in (gamma, beta))
    x, identity = normal(2, channels, 9, 9), normal(2, channels, 9, 9, seed=1)
    x[:, :, 0] = 0
    model = block(x, identity, scale, shift, np.zeros(channels), np.ones(channels))
    batch, tensors = run(model, (NORM, ADD), {"x": x, "i": identity})
    assert_agrees(batch, (NORM, ADD), tensors)


def convolution(gamma: Array, beta: Array, mean: Array, *, half: bool) -> onnx.ModelProto:
    """relu(norm(conv(x)) + identity) of x with 12 channels; the weights may be stored as float16."""
    channels = len(gamma)
    nodes = [
        helper.make_node("Cast", ["stored"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "weight", "bias"], ["before"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["before", "gamma", "beta", "mean", "var"], ["after"]),
        helper.make_node("Add", ["after", "i"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["logits"]),
    ]
    constants = {"gamma": gamma, "beta": beta, "mean": mean, "var": np.full(channels, 0.5), "bias": normal(channels, seed=6)}
    weight = normal(channels, 12, 3, 3, seed=5).astype(np.float16 if half else np.float32)
    inputs = {"x": normal(3, 12, 9, 9), "i": normal(3, channels, 9, 9, seed=1)}
    return model_of(nodes, inputs, {name: value.astype(np.float32) for name, value in constants.items()} | {"stored": weight})


def divided(model: onnx.ModelProto, layers: tuple[Layer, ...]) -> int:
    """How many observers see a tensor times the scale of its normalization."""
    layout, copy = SideLayout(layers), onnx.ModelProto()
    copy.CopyFrom(model)
    add_observers(copy, layout.reductions, layout.pairs)
    return sum(node.domain == DOMAIN and any(name.endswith(".divisor") for name in node.input) for node in copy.graph.node)


@pytest.mark.parametrize("channels", [16, 5])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(
    ("gamma", "beta", "mean"),
    [
        ([1, -2, 0.3], [0.5, -1, 0], [0, 1, -1]),
        ([1e-6, -1e-6, 1e-4], [0.5, 0, 1], [0, 0, 3]),
        ([1e-6, 5, -1e-9], [0, 1, 100], [0, 0, 0]),  # beta large against what gamma scales
        ([1, 0, 1e-14], [0.5, 0, 1], [0, 0, 0]),  # nothing to divide by
    ],
)
def test_a_scale_in_the_weights(channels: int, half: bool, gamma: list[float], beta: list[float], mean: list[float]) -> None:
    """Where the convolution does the scaling, both sides are what they would be without, however small the scale; where it cannot,
    it does not."""
    parameters = (np.resize(np.array(each, float), channels) for each in (gamma, beta, mean))
    model = convolution(*parameters, half=half)
    assert divided(model, (NORM, ADD)) == (0 not in gamma)
    feed = {"x": normal(3, 12, 9, 9), "i": normal(3, channels, 9, 9, seed=1)}
    feed["x"][0] *= 1e-20  # next to nothing but bias
    batch, tensors = run(model, (NORM, ADD), feed)
    assert_agrees(batch, (NORM, ADD), tensors)


@pytest.mark.parametrize("channels", [16, 5])
def test_values_that_are_not_finite_in_scaled_weights(channels: int) -> None:
    """They are counted before and after the normalization where the convolution does the scaling."""
    model = convolution(np.resize([1.0, -1e-6, 3], channels), np.ones(channels), np.zeros(channels), half=False)
    feed = {"x": normal(3, 12, 9, 9), "i": normal(3, channels, 9, 9, seed=1)}
    feed["x"][1, 3, 4, 4], feed["x"][2, 0, 0, 0] = np.nan, np.inf
    assert divided(model, (NORM, ADD)) == 1
    batch, tensors = run(model, (NORM, ADD), feed)
    assert_agrees(batch, (NORM, ADD), tensors)
    assert batch.sample(1).describe((NORM,), channels=False)[0]["before"]["nonfinite"] == 9 * channels


def test_a_tensor_that_two_layers_watch() -> None:
    """It is not scaled for one of them: both see what it is."""
    model = convolution(np.full(16, 0.5), np.ones(16), np.zeros(16), half=False)
    other = layer("other", "layer_norm", {"before": "before", "after": "sum"}, axis=3)
    assert divided(model, (NORM, other)) == 0
    feed = {"x": normal(3, 12, 9, 9), "i": normal(3, 16, 9, 9, seed=1)}
    batch, tensors = run(model, (NORM, other), feed)
    assert_agrees(batch, (NORM, other), tensors)


@pytest.mark.parametrize("channels", [16, 5])
@pytest.mark.parametrize(("mean", "std"), [(1e4, 1.0), (-1e4, 1.0), (0.0, 1e-20), (3.0, 0.0), (0.0, 1e25), (1e30, 1e25)])
@pytest.mark.parametrize("centred", [True, False])
def test_values_that_are_hard(channels: int, mean: float, std: float, centred: bool) -> None:
    """A mean large against the deviation, tiny values, constants, and values whose squares overflow; also where the norm subtracts
    that mean, and the rounding of its own constants counts."""
    x = (mean + std * normal(2, channels, 12, 12).astype(np.float64)).astype(np.float32)
    running = np.full(channels, mean if centred and abs(mean) < 1e6 else 0.0)
    model = block(x, x / 2, np.ones(channels), np.full(channels, 0.5), running, np.ones(channels))
    batch, tensors = run(model, (NORM, ADD), {"x": x, "i": x / 2})
    assert_agrees(batch, (NORM, ADD), tensors)


@pytest.mark.parametrize("channels", [16, 5])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [(0, 0, 0), (3, 5, 7), (4, 8, 8)])
def test_a_value_that_is_not_finite(channels: int, value: float, position: tuple[int, int, int]) -> None:
    """One, anywhere, is counted on every side that it reaches, and blanks that side of that sample and that channel alone."""
    x, identity = normal(2, channels, 9, 9), normal(2, channels, 9, 9, seed=1)
    x[(1, *position)] = value
    gamma = np.resize([1.0, -1.0, 0.5], channels)
    model = block(x, identity, gamma, np.zeros(channels), np.zeros(channels), np.ones(channels))
    batch, tensors = run(model, (NORM, ADD), {"x": x, "i": identity})
    assert_agrees(batch, (NORM, ADD), tensors)
    described = batch.sample(1).describe((ADD,), channels=False)[0]
    assert (described["residual"]["nonfinite"], described["identity"]["nonfinite"]) == (1, 0)
    assert (described["residual_ratio"], described["cosine"]) == (None, None)


@pytest.mark.parametrize("channels", [16, 5])
def test_what_becomes_infinite_on_the_way(channels: int) -> None:
    """An all -inf channel, and finite values that overflow in the norm or in the sum: counted where they are, and only there."""
    x, identity = normal(2, channels, 9, 9), normal(2, channels, 9, 9, seed=1)
    x[0, 1] = -np.inf
    x[1, 2, 3, 3] = 1e38
    x[1, 3, 3, 3] = identity[1, 3, 3, 3] = 2e38
    gamma = np.resize([1.0, 1.0, 10.0, 1.0], channels)
    model = block(x, identity, gamma, np.zeros(channels), np.zeros(channels), np.full(channels, 1.0))
    batch, tensors = run(model, (NORM, ADD), {"x": x, "i": identity})
    assert_agrees(batch, (NORM, ADD), tensors)


@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("width", [128, 3])
def test_tokens_without_their_padding(width: int, by_channel: bool) -> None:
    """Masked tokens do not exist, wherever they are and whatever is in them; a text of nothing but padding has no statistics."""
    add = layer("add", "residual_add", {"identity": "x", "residual": "f", "sum": "sum"}, 2, "mask")
    norm = layer("norm", "layer_norm", {"before": "sum", "after": "after"}, 2, "mask")
    x, mask = normal(5, 13, width), np.ones((5, 13), np.int64)
    mask[0, 5:], mask[1, :2], mask[2, 3:9], mask[3] = 0, 0, 0, 0
    x[0, 6], x[1, 0] = np.nan, np.inf
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["f"]),
        helper.make_node("Add", ["x", "f"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "gamma", "beta"], ["after"]),
        helper.make_node("Relu", ["after"], ["logits"]),
    ]
    constants = {"weight": normal(width, width), "gamma": normal(width), "beta": normal(width)}
    feed = {"x": x, "mask": mask}
    batch, tensors = run(model_of(nodes, feed, constants), (add, norm), feed, channels=by_channel)
    for i in (0, 1, 2, 4):
        real = {name: tensor[i : i + 1][:, mask[i] == 1] for name, tensor in tensors.items()}
        assert_agrees(_only(batch, i), (add, norm), real, channels=by_channel)
    nothing = batch.sample(3).describe((norm,), channels=False)[0]["before"]
    assert (nothing["count"], nothing["nonfinite"], nothing["mean"]) == (0, 0, None)


@pytest.mark.parametrize(
    ("shape", "channel_axis", "mask_axis"),
    [
        ((3, 9, 2, 8), 3, 1),  # heads of tokens
        ((3, 2, 9, 8), 3, 2),  # tokens of heads
        ((3, 8, 9), 1, 2),  # a convolution over tokens
        ((3, 8, 9, 4), 1, 2),
    ],
)
def test_tokens_along_any_axis(shape: tuple[int, ...], channel_axis: int, mask_axis: int) -> None:
    """Padding is left out of a norm and of an add wherever the tokens lie: the mask is (batch, length) all the same."""
    sides = {"identity": "x", "residual": "f", "sum": "sum"}
    add = layer("add", "residual_add", sides, channel_axis, "mask", mask_axis)
    norm = layer("norm", "layer_norm", {"before": "sum", "after": "after"}, channel_axis, "mask", mask_axis)
    x, mask = normal(*shape), np.ones((3, 9), np.int64)
    mask[0, 4:], mask[1, 0] = 0, 0
    np.moveaxis(x, mask_axis, 1)[0, 5] = np.nan
    nodes = [
        helper.make_node("Mul", ["x", "weight"], ["f"]),
        helper.make_node("Add", ["x", "f"], ["sum"]),
        helper.make_node("Neg", ["sum"], ["after"]),
        helper.make_node("Relu", ["after"], ["logits"]),
    ]
    feed = {"x": x, "mask": mask}
    batch, tensors = run(model_of(nodes, feed, {"weight": normal(*shape[1:], seed=1)}), (add, norm), feed)
    for i in range(3):
        real = {name: tensor[i : i + 1].compress(mask[i], mask_axis) for name, tensor in tensors.items()}
        assert_agrees(_only(batch, i), (add, norm), real)


def _only(batch: BatchStatistics, i: int) -> BatchStatistics:
    """One sample of a batch as a batch of its own."""

    def row(moments: Moments) -> Moments:
        return Moments(*(value[i : i + 1] for value in vars(moments).values()))

    pairs = batch.residual_ratio[i : i + 1], batch.cosine[i : i + 1]
    return BatchStatistics(batch.layout, row(batch.pooled), *pairs, lambda at: row(batch.channels(at)))


def test_half_precision() -> None:
    """float16 activations are summed in float32: agreement is that of float16, whose results ONNX Runtime may leave unrounded."""
    x, weight = normal(3, 7, 33).astype(np.float16), normal(33, 33).astype(np.float16)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["f"]),
        helper.make_node("Add", ["x", "f"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["logits"], to=TensorProto.FLOAT),
    ]
    add = layer("add", "residual_add", {"identity": "x", "residual": "f", "sum": "sum"}, axis=2)
    batch, tensors = run(model_of(nodes, {"x": x}, {"weight": weight}), (add,), {"x": x})
    for i in range(3):
        described = batch.sample(i).describe((add,), channels=False)[0]
        for side, name in add.tensors.items():
            expected = expected_side(tensors[name][i])
            for statistic in ("mean", "var", "std", "min", "max", "l2"):
                assert described[side][statistic] == pytest.approx(expected[statistic], rel=1e-3, abs=1e-3), (side, statistic)
            assert described[side]["count"] == 7 * 33


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1e4, 1.0), (-1e4, 30.0), (6e4, 100.0), (0.0, 1e-6), (3.0, 0.0)])
def test_half_precision_that_is_hard(mean: float, std: float, axis: int) -> None:
    """float16 activations with a mean large against the deviation, squares beyond float16, subnormal and constant values: exactly
    those of the same numbers in float32."""
    x = (mean + std * normal(3, 7, 33).astype(np.float64)).astype(np.float16)
    assert np.isfinite(x).all()
    norm, model = _half_graph(x, axis)
    batch, tensors = run(model, (norm,), {"x": x})
    assert_agrees(batch, (norm,), {name: tensor.astype(np.float32) for name, tensor in tensors.items()})
    for i in range(3):
        described = batch.sample(i).describe((norm,), channels=False)[0]
        for side, tensor in (("before", x[i]), ("after", -x[i])):
            expected = expected_side(tensor)
            s = expected["l2"] / np.sqrt(expected["count"])
            for name in ("mean", "std", "min", "max"):
                assert described[side][name] == pytest.approx(expected[name], abs=1e-5 * max(abs(expected[name]), s)), (side, name)
            assert described[side]["var"] == pytest.approx(expected["var"], rel=1e-3), side


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0), (3, 17), (6, 32), (slice(None), 4), (4, slice(None))])
def test_half_precision_that_is_not_finite(where: tuple[int | slice, int | slice], value: float, axis: int) -> None:
    """NaN and infinities in float16, single ones and whole channels, are counted in their sample and channel alone."""
    x = normal(3, 7, 33).astype(np.float16)
    x[(1, *where)] = value
    norm, model = _half_graph(x, axis)
    batch, tensors = run(model, (norm,), {"x": x})
    assert_agrees(batch, (norm,), {name: tensor.astype(np.float32) for name, tensor in tensors.items()})
    counted = [batch.sample(i).describe((norm,), channels=False)[0]["before"]["nonfinite"] for i in range(3)]
    assert counted == [0, np.isnan(x[1]).sum() + np.isinf(x[1]).sum(), 0]


def _half_graph(x: Array, axis: int) -> tuple[Layer, onnx.ModelProto]:
    """A float16 tensor and its negative, which no rounding can change: what is reduced is what the tensor holds."""
    nodes = [
        helper.make_node("Neg", ["x"], ["after"]),
        helper.make_node("Cast", ["after"], ["logits"], to=TensorProto.FLOAT),
    ]
    return layer("norm", "layer_norm", {"before": "x", "after": "after"}, axis), model_of(nodes, {"x": x}, {})


def test_a_sum_of_unequal_shapes() -> None:
    """Where an add repeats one of its sides, each side is what it is."""
    x = normal(2, 5, 3, 3)
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["f"], axes=[2, 3]),
        helper.make_node("Add", ["x", "f"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["logits"]),
    ]
    norm = layer("norm", "instance_norm", {"before": "x", "after": "sum"}, axis=1)
    model = model_of(nodes, {"x": x}, {})
    model.opset_import[0].version = 17
    batch, tensors = run(model, (norm,), {"x": x})
    assert_agrees(batch, (norm,), tensors)


def test_channels_along_an_axis_of_any_extent() -> None:
    """Where the number of channels is another in every run of a session, each run lists its own."""
    add = layer("add", "residual_add", {"identity": "x", "residual": "f", "sum": "sum"}, axis=2)
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["f"]),
        helper.make_node("Add", ["x", "f"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(normal(3, 3, 1), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    layout = SideLayout((add,))
    prepared = watch(model, ("logits",), "cpu", layout.reductions, layout.pairs)
    session, reducer = Session(prepared, 1), BatchReducer(layout, prepared.observers)
    for length in (5, 8, 8, 2):
        x = normal(2, 3, length, seed=length)
        result = session.run({"x": x}, channels=True)
        batch = reducer.reduce(RunOutputs(result.tensors, result.summary, result.channels), {"x": x})
        identity = batch.channels(layout.row_of["add", "identity"])
        np.testing.assert_allclose(identity.mean, x.mean(axis=1), atol=1e-6)
        assert identity.count.shape == (2, length)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    """The same sample alone and among others gives identical numbers."""
    x, identity = normal(5, 16, 30, 30), normal(5, 16, 30, 30, seed=1)
    gamma, beta, mean = (normal(16, seed=i) for i in (2, 3, 4))
    among, _ = run(block(x, identity, gamma, beta, mean, np.ones(16)), (NORM, ADD), {"x": x, "i": identity})
    alone, _ = run(block(x, identity, gamma, beta, mean, np.ones(16)), (NORM, ADD), {"x": x[2:3], "i": identity[2:3]})
    np.testing.assert_array_equal(alone.pooled.m2[0], among.pooled.m2[2])
    np.testing.assert_array_equal(alone.cosine[0], among.cosine[2])
