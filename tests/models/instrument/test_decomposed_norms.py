"""One tiny graph for each rule of written-out normalizations, run for real: what is found must be what the formula says."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.instrument.probes import Probe, find_probes
from models.instrument.taps import add_taps

_EPSILON = 0.125
_X = np.random.default_rng(1).normal(1, 2, (2, 4, 6)).astype(np.float32)
_CONSTANTS: Mapping[str, NDArray[Any]] = {
    "two": np.array(2, np.float32),
    "half": np.array(0.5, np.float32),
    "minus_half": np.array(-0.5, np.float32),
    "one": np.ones(1, np.float32),
    "eps": np.array(_EPSILON, np.float32),
    "g": np.random.default_rng(2).normal(size=6).astype(np.float32),
    "b": np.random.default_rng(3).normal(size=6).astype(np.float32),
    "axes": np.array([-1]),
    "axis1": np.array([1]),
    "axis0": np.array([0]),
    "groups": np.array([0, 2, -1]),
    "back": np.array([0, 4, 6]),
    "ones": np.ones(2, np.float32),
    "zeros": np.zeros(2, np.float32),
    "two_groups": np.array([1, 2], np.float32),
    "gc": np.random.default_rng(4).normal(size=(4, 1)).astype(np.float32),
    "bc": np.random.default_rng(5).normal(size=(4, 1)).astype(np.float32),
    "image": np.array([0, 2, 2, 6]),
    "axes23": np.array([2, 3]),
    "axes12": np.array([1, 2]),
    "g_channel": np.random.default_rng(6).normal(size=(2, 1, 1)).astype(np.float32),
    "b_channel": np.random.default_rng(7).normal(size=(2, 1, 1)).astype(np.float32),
    "g_space": np.random.default_rng(8).normal(size=(2, 6)).astype(np.float32),
    "three": np.array(3, np.float32),
}


def _model(*lines: str, opset: int = 18) -> onnx.ModelProto:
    """Lines `output = Operator input input ...`; the last output is y. Reductions keep their axes; Casts go to float32."""
    nodes = []
    for line in lines:
        output, _, call = line.partition(" = ")
        operator, *inputs = call.split()
        attributes: dict[str, Any] = {}
        if operator == "Cast":
            attributes["to"] = TensorProto.FLOAT
        if operator == "ReduceMean" and opset < 18:
            attributes["axes"] = [-1]
            inputs = inputs[:1]
        nodes.append(helper.make_node(operator, inputs, [output], name=f"/block/norm/{output}", **attributes))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in _CONSTANTS.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def _run(model: onnx.ModelProto, probe: Probe) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(before, after) as ONNX Runtime computes them."""
    wanted = [probe.tensors["before"], probe.tensors["after"]]
    session = onnxruntime.InferenceSession(add_taps(model, [name for name in wanted if name not in "xy"]).SerializeToString())
    values = {"x": _X} | dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": _X}), strict=True))
    return values[wanted[0]], values[wanted[1]]


def _layer_norm(x: NDArray[np.float32], axis: int = -1) -> NDArray[np.float32]:
    normalized: NDArray[np.float32] = (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + _EPSILON)
    return normalized


def _rms_norm(x: NDArray[np.float32]) -> NDArray[np.float32]:
    normalized: NDArray[np.float32] = x / np.sqrt((x * x).mean(-1, keepdims=True) + _EPSILON)
    return normalized


_CENTRE = ("m = ReduceMean x axes", "d = Sub x m")
_ROOT = ("e = Add v eps", "s = Sqrt e")
_AFFINE = ("p = Mul n g", "y = Add p b")
_LAYER_NORMS = {
    "power": (*_CENTRE, "q = Pow d two", "v = ReduceMean q axes", *_ROOT, "n = Div d s", *_AFFINE),
    "product": (*_CENTRE, "q = Mul d d", "v = ReduceMean q axes", *_ROOT, "n = Div d s", *_AFFINE),
    "epsilon first": (*_CENTRE, "q = Mul d d", "v = ReduceMean q axes", "e = Add eps v", "s = Sqrt e", "n = Div d s", *_AFFINE),
    "reciprocal": (*_CENTRE, "q = Pow d two", "v = ReduceMean q axes", *_ROOT, "r = Reciprocal s", "n = Mul d r", *_AFFINE),
    "one over": (*_CENTRE, "q = Pow d two", "v = ReduceMean q axes", *_ROOT, "r = Div one s", "n = Mul r d", *_AFFINE),
    "power of a half": (
        *_CENTRE,
        "q = Pow d two",
        "v = ReduceMean q axes",
        "e = Add v eps",
        "s = Pow e half",
        "n = Div d s",
        *_AFFINE,
    ),
    "power of minus a half": (
        *_CENTRE,
        "q = Pow d two",
        "v = ReduceMean q axes",
        "e = Add v eps",
        "r = Pow e minus_half",
        "n = Mul d r",
        *_AFFINE,
    ),
    "difference twice": (*_CENTRE, "d2 = Sub x m", "q = Pow d2 two", "v = ReduceMean q axes", *_ROOT, "n = Div d s", *_AFFINE),
    "casts": (
        "c = Cast x",
        "m = ReduceMean c axes",
        "d = Sub c m",
        "k = Cast d",
        "q = Pow k two",
        "v = ReduceMean q axes",
        *_ROOT,
        "n = Div d s",
        "h = Cast n",
        "p = Mul g h",
        "y = Add b p",
    ),
}


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
@pytest.mark.parametrize("variant", _LAYER_NORMS)
def test_layer_norm(variant: str, opset: int) -> None:
    """Rules 1 to 5: each way to write a layer norm, in old and new operator sets."""
    model = _model(*_LAYER_NORMS[variant], opset=opset)
    (probe,) = find_probes(model)
    assert (probe.layer, probe.kind, probe.channel_axis, probe.epsilon) == ("block.norm", "layer_norm", 2, _EPSILON)
    assert probe.tensors == {"before": "x", "after": "y"}
    assert probe.gamma is not None
    assert probe.beta is not None
    np.testing.assert_array_equal(probe.gamma, _CONSTANTS["g"])
    np.testing.assert_array_equal(probe.beta, _CONSTANTS["b"])
    before, after = _run(model, probe)
    np.testing.assert_allclose(after, _layer_norm(before) * _CONSTANTS["g"] + _CONSTANTS["b"], rtol=1e-4, atol=1e-5)


_MOMENTS = (*_CENTRE, "q = Mul d d", "v = ReduceMean q axes", *_ROOT, "r = Reciprocal s")
_FOLDED = {
    "TensorFlow": (*_MOMENTS, "k = Mul r g", "a = Mul x k", "c = Mul m k", "h = Sub b c", "y = Add a h"),
    "Keras": (*_MOMENTS, "k = Mul g r", "a = Mul k x", "l = Neg m", "c = Mul l k", "h = Add c b", "y = Add h a"),
    "without gamma": (*_MOMENTS, "a = Mul x r", "c = Mul m r", "h = Sub b c", "y = Add a h"),
}


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("variant", _FOLDED)
def test_folded_layer_norm(variant: str, opset: int) -> None:
    """Rule 8: x is multiplied before the mean is taken off."""
    model = _model(*_FOLDED[variant], opset=opset)
    (probe,) = find_probes(model)
    assert (probe.layer, probe.kind, probe.channel_axis, probe.epsilon) == ("block.norm", "layer_norm", 2, _EPSILON)
    assert probe.tensors == {"before": "x", "after": "y"}
    gamma = 1 if variant == "without gamma" else _CONSTANTS["g"]
    assert (probe.gamma is None) == (variant == "without gamma")
    assert probe.beta is not None
    np.testing.assert_array_equal(probe.beta, _CONSTANTS["b"])
    before, after = _run(model, probe)
    np.testing.assert_allclose(after, _layer_norm(before) * gamma + _CONSTANTS["b"], rtol=1e-4, atol=1e-5)


def test_rms_norm() -> None:
    """Rules 1 to 3 for the RMS norm: no mean is taken off, and there is no beta."""
    model = _model("q = Pow x two", "v = ReduceMean q axes", *_ROOT, "r = Reciprocal s", "n = Mul x r", "y = Mul g n")
    (probe,) = find_probes(model)
    assert (probe.kind, probe.beta, probe.epsilon) == ("rms_norm", None, _EPSILON)
    before, after = _run(model, probe)
    np.testing.assert_allclose(after, _rms_norm(before) * _CONSTANTS["g"], rtol=1e-4, atol=1e-5)


def test_layer_norm_over_channels() -> None:
    """Rule 4: over axis 1 of images, as ConvNeXt has it, the channel axis is 1."""
    model = _model("m = ReduceMean x axis1", "d = Sub x m", "q = Pow d two", "v = ReduceMean q axis1", *_ROOT, "y = Div d s")
    (probe,) = find_probes(model)
    assert (probe.kind, probe.channel_axis, probe.gamma, probe.beta) == ("layer_norm", 1, None, None)
    before, after = _run(model, probe)
    np.testing.assert_allclose(after, _layer_norm(before, axis=1), rtol=1e-4, atol=1e-5)


def test_group_norm() -> None:
    """Rule 6: one probe around the whole, none for the instance norm inside."""
    model = _model(
        "r = Reshape x groups", "i = InstanceNormalization r ones zeros", "n = Reshape i back", "p = Mul n gc", "y = Add p bc"
    )
    (probe,) = find_probes(model)
    assert (probe.kind, probe.channel_axis, probe.tensors) == ("group_norm", 1, {"before": "x", "after": "y"})
    assert probe.gamma is not None
    before, after = _run(model, probe)
    grouped = before.reshape(2, 2, -1)
    normalized = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + probe.epsilon)
    expected = normalized.reshape(before.shape) * _CONSTANTS["gc"] + _CONSTANTS["bc"]
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)


def test_an_instance_norm_between_reshapes_keeps_its_own_gamma() -> None:
    """Rule 6: with a gamma other than 1, of its groups, it is an instance norm of what it sees, no group norm."""
    model = _model("r = Reshape x groups", "i = InstanceNormalization r two_groups zeros", "n = Reshape i back", "y = Mul n gc")
    (probe,) = find_probes(model)
    assert (probe.kind, probe.tensors) == ("instance_norm", {"before": "r", "after": "i"})
    assert probe.gamma is not None
    np.testing.assert_array_equal(probe.gamma, _CONSTANTS["two_groups"])


def test_layer_norm_over_the_last_two_axes_of_an_image() -> None:
    """Rule 4: a gamma with extents along the last axes says that they are normalized together: a layer norm over (H, W)."""
    model = _model(*_over("axes23"), "y = Mul n g_space")
    (probe,) = find_probes(model)
    assert (probe.kind, probe.tensors) == ("layer_norm", {"before": "i", "after": "y"})


def test_what_follows_for_others_too_is_not_part_of_the_norm() -> None:
    """Rule 5: a product that is not the only reader of the normalized values is no gamma, and neither is one with a number."""
    lines = (*_CENTRE, "q = Pow d two", "v = ReduceMean q axes", *_ROOT, "n = Div d s")
    (shared,) = find_probes(_model(*lines, "p = Mul n g", "y = Sub p n"))
    (scaled,) = find_probes(_model(*lines, "y = Mul n three"))
    for probe in (shared, scaled):
        assert (probe.tensors["after"], probe.gamma) == ("n", None)


def _over(axes: str) -> tuple[str, ...]:
    """A layer norm without gamma and beta over `axes` of x as an image (batch, 2, 2, 6)."""
    return (
        "i = Reshape x image",
        f"m = ReduceMean i {axes}",
        "d = Sub i m",
        "q = Mul d d",
        f"v = ReduceMean q {axes}",
        *_ROOT,
        "n = Div d s",
    )


_OTHERS = {
    "over space": (*_over("axes23"), "y = Identity n"),
    "over space, with a number for each channel": (*_over("axes23"), "p = Mul n g_channel", "y = Add p b_channel"),
    "over space, channels last": (*_over("axes12"), "y = Identity n"),
    "length of a vector": ("q = Mul x x", "v = ReduceSum q axes", *_ROOT, "y = Div x s"),
    "scores": ("y = Div x three",),
    "no epsilon": (*_CENTRE, "q = Mul d d", "v = ReduceMean q axes", "s = Sqrt v", "y = Div d s"),
    "over the batch": ("m = ReduceMean x axis0", "d = Sub x m", "q = Mul d d", "v = ReduceMean q axis0", *_ROOT, "y = Div d s"),
    "deviation of another tensor": (*_CENTRE, "o = Relu x", "q = Mul o o", "v = ReduceMean q axes", *_ROOT, "y = Div d s"),
    "another mean is taken off": (
        *_MOMENTS,
        "o = Relu x",
        "w = ReduceMean o axes",
        "a = Mul x r",
        "c = Mul w r",
        "h = Sub b c",
        "y = Add a h",
    ),
    "the mean is added": (*_MOMENTS, "a = Mul x r", "c = Mul m r", "h = Add b c", "y = Add a h"),
    "two factors": (*_MOMENTS, "k = Mul r g", "a = Mul x k", "c = Mul m r", "h = Sub b c", "y = Add a h"),
    "third power": (*_CENTRE, "q = Pow d three", "v = ReduceMean q axes", *_ROOT, "y = Div d s"),
    "mean of the difference": (*_CENTRE, "v = ReduceMean d axes", *_ROOT, "y = Div d s"),
}


@pytest.mark.parametrize("other", _OTHERS)
def test_other_arithmetic_is_no_norm(other: str) -> None:
    """Rules 2 to 4 and 7: what only looks like a normalization is left alone."""
    assert find_probes(_model(*_OTHERS[other])) == []
