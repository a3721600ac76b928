"""Scales in the weights of convolutions: the graph computes what it did, with the weights that ONNX Runtime makes by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.instrument.folding import fold_scale
from models.instrument.graph import Graph
from tests.graphs import graph_of

_CHANNELS, _EPSILON = 12, 1e-3
_RNG = np.random.default_rng(0)


def network(
    weight: NDArray[Any], gamma: NDArray[Any], *, bias: bool = False, group: int = 1, further: list[onnx.NodeProto] | None = None
) -> onnx.ModelProto:
    """y = relu(norm(conv(x))), of a weight of any type that is cast to float32; between them is `before`."""
    nodes = [
        helper.make_node("Cast", ["stored"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "weight", *(["bias"] if bias else [])], ["before"], group=group),
        helper.make_node("BatchNormalization", ["before", "gamma", "beta", "mean", "var"], ["after"], epsilon=_EPSILON),
        helper.make_node("Relu", ["after"], ["y"]),
        *(further or ()),
    ]
    constants = {
        "stored": weight,
        "gamma": gamma.astype(np.float32),
        "var": _RNG.uniform(0.5, 2, len(gamma)).astype(np.float32),
        **{name: _RNG.normal(size=len(gamma)).astype(np.float32) for name in ("beta", "mean", "bias")},
    }
    shape: list[int | str] = ["batch", weight.shape[1] * group, *[9] * (weight.ndim - 2)]
    outputs: dict[str, Any] = {"y": (TensorProto.FLOAT, None)}
    return graph_of(nodes, {"x": (TensorProto.FLOAT, shape)}, outputs, constants)


def fold(model: onnx.ModelProto) -> NDArray[np.float32] | None:
    """Folds the only normalization of a network."""
    graph = Graph(onnx.shape_inference.infer_shapes(model))
    norm = graph.producer("after")
    assert norm is not None
    gamma, beta, mean, var = (np.asarray(graph.constant(name), np.float64) for name in norm.input[1:])
    return fold_scale(model, graph, norm, (beta - mean * gamma / np.sqrt(var + _EPSILON)).astype(np.float32))


def weights(*shape: int) -> NDArray[np.float64]:
    """Of a convolution."""
    return _RNG.normal(size=shape)


def lively() -> NDArray[np.float64]:
    """Gammas of both signs and many sizes, within the rules."""
    return np.resize([1, -2, 1e-6, -1e-9, 0.3, 4], _CHANNELS)


def tensors(model: onnx.ModelProto, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """`before` and `y`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(helper.make_tensor_value_info("before", TensorProto.FLOAT, None))
    return list(onnxruntime.InferenceSession(copy.SerializeToString()).run(["before", "y"], feed))


def initializer(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    """The value of one."""
    return np.asarray(next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("extents", "group"), [((5, 3, 3), 1), ((1, 3, 3), _CHANNELS), ((2, 3), 3), ((4, 1, 1), 2)])
def test_the_graph_computes_the_same(
    kind: type[np.floating], bias: bool, extents: tuple[int, ...], group: int, tmp_path: Path
) -> None:
    """What enters the normalization is scale times what it was, what leaves it is the same, and the weights are, to the last bit,
    those that ONNX Runtime makes where nobody watches: whatever they are stored as, with a bias or not, in one axis or two."""
    model = network(weights(_CHANNELS, *extents).astype(kind), lively(), bias=bias, group=group)
    feed = {"x": _RNG.normal(size=(2, extents[0] * group, *[9] * (len(extents) - 1))).astype(np.float32)}
    before, y = tensors(model, feed)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    optimized = onnx.load(tmp_path / "optimized.onnx")
    (convolution,) = (node for node in optimized.graph.node if node.op_type in ("Conv", "FusedConv"))

    scale = fold(model)
    assert scale is not None
    np.testing.assert_array_equal(
        initializer(model, "normscope.folded.before.weight"), initializer(optimized, convolution.input[1])
    )
    scaled, after = tensors(model, feed)
    broadcast = scale.reshape(-1, *[1] * (len(extents) - 1))
    np.testing.assert_allclose(scaled / broadcast, before, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1e-14, 20.0, -20.0, np.nan, np.inf])
def test_a_scale_out_of_range(gamma: float) -> None:
    """0, what could leave the range of float32, and what is no number: in one channel, it leaves the graph unchanged."""
    gammas = np.ones(_CHANNELS)
    gammas[7] = gamma
    model = network(weights(_CHANNELS, 5, 3, 3), gammas)
    assert_unchanged(model)


def test_another_reader() -> None:
    """A tensor that somebody else reads, or that is an output, stays what it is."""
    model = network(weights(_CHANNELS, 5, 3, 3), lively(), further=[helper.make_node("Neg", ["before"], ["other"])])
    assert_unchanged(model)
    model = network(weights(_CHANNELS, 5, 3, 3), lively())
    model.graph.output.append(helper.make_tensor_value_info("before", TensorProto.FLOAT, None))
    assert_unchanged(model)


@pytest.mark.parametrize(("name", "shape"), [("gamma", [_CHANNELS]), ("bias", [_CHANNELS]), ("stored", [_CHANNELS, 5, 3, 3])])
def test_weights_that_a_run_may_bring(name: str, shape: list[int]) -> None:
    """An initializer that is an input too is no constant, nor is what is made of it."""
    model = network(weights(_CHANNELS, 5, 3, 3).astype(np.float32), lively(), bias=True)
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    assert_unchanged(model)


def test_quantized_weights() -> None:
    """Weights that are made of integers stay, since ONNX Runtime knows such convolutions."""
    model = network(_RNG.integers(-128, 127, (_CHANNELS, 5, 3, 3)).astype(np.int8), lively())
    cast = model.graph.node[0]
    cast.CopyFrom(helper.make_node("DequantizeLinear", ["stored", "step"], ["weight"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "step"))
    assert_unchanged(model)


@pytest.mark.parametrize("others", [0, 1])
def test_weights_that_nobody_reads_any_more(others: int) -> None:
    """They leave the graph, unless another convolution has the same."""
    further = [helper.make_node("Conv", ["x", "weight"], ["other"])] * others
    model = network(weights(_CHANNELS, 5, 3, 3).astype(np.float32), lively(), further=further)
    del model.graph.node[0]
    next(tensor for tensor in model.graph.initializer if tensor.name == "stored").name = "weight"
    assert fold(model) is not None
    assert sum(tensor.name == "weight" for tensor in model.graph.initializer) == others


def assert_unchanged(model: onnx.ModelProto) -> None:
    """Nothing is folded."""
    before = model.SerializeToString(deterministic=True)
    assert fold(model) is None
    assert model.SerializeToString(deterministic=True) == before
