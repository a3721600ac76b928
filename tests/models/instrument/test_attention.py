"""Self-attention as one operator: the outputs stay those of the graph, and what is not self-attention stays as it is."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.instrument.attention import fuse_attention
from tests.graphs import graph_of, weights

_D, _H = 8, 2
_N, _L = 3, 5
_HIDDEN = float(np.finfo(np.float32).min)
Mask = Literal["where visible", "where hidden", "add", "none"]


def projection(name: str, order: Sequence[int], source: str = "x") -> list[onnx.NodeProto]:
    """`name` = `source` W + b in heads."""
    return [
        helper.make_node("MatMul", [source, f"{name}.w"], [f"{name}.product"]),
        helper.make_node("Add", [f"{name}.product", f"{name}.b"], [f"{name}.biased"]),
        helper.make_node("Reshape", [f"{name}.biased", "split"], [f"{name}.split"]),
        helper.make_node("Transpose", [f"{name}.split"], [name], perm=order),
    ]


def attention(
    mask: Mask = "where visible",
    *,
    scale: Literal["Mul", "Div", "none"] = "Mul",
    keys_at_once: bool = False,
    hidden: float = _HIDDEN,
    key_source: str = "x",
    axis: int = -1,
    mask_shape: Sequence[int | str] = ("batch", 1, 1, "length"),
    kind: int = TensorProto.FLOAT,
    outputs: Sequence[str] = (),
    split: Sequence[int] = (0, 0, _H, _D // _H),
    opset: int = 17,
) -> onnx.ModelProto:
    """y = attention of x (N, L, 8) to x, or to the input `memory`; the mask is the input `mask`, bool or added."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = projection("q", [0, 2, 1, 3])
    nodes += projection("k", [0, 2, 3, 1], key_source) if keys_at_once else projection("k0", [0, 2, 1, 3], key_source)
    nodes += [] if keys_at_once else [helper.make_node("Transpose", ["k0"], ["k"], perm=[0, 1, 3, 2])]
    nodes += [*projection("v", [0, 2, 1, 3], key_source), helper.make_node("MatMul", ["q", "k"], ["product"])]
    if scale != "none":
        nodes.append(helper.make_node(scale, ["product", "scale"], ["scores"]))
    scores = "product" if scale == "none" else "scores"
    masked = {
        "where visible": ("Where", ["mask", scores, "hidden"]),
        "where hidden": ("Where", ["mask", "hidden", scores]),
        "add": ("Add", ["mask", scores]),
        "none": ("Identity", [scores]),
    }
    operator, inputs = masked[mask]
    nodes += [
        helper.make_node(operator, inputs, ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=axis),
        helper.make_node("MatMul", ["weights", "v"], ["weighted"]),
        helper.make_node("Transpose", ["weighted"], ["joined"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["joined", "whole"], ["y"]),
    ]
    key = "k" if keys_at_once else "k0"
    constants: dict[str, NDArray[Any]] = {
        "split": np.array(split),
        "whole": np.array([0, 0, _D]),
        "scale": np.array(0.5 if scale == "Mul" else 2, dtype),
        "hidden": np.array(hidden, dtype),
    }
    for i, name in enumerate(("q", key, "v")):
        constants |= {f"{name}.w": 2 * weights(_D, _D, seed=i).astype(dtype), f"{name}.b": weights(_D, seed=9 + i).astype(dtype)}
    shape = ("batch", "length", _D)
    taken: dict[str, tuple[int, Any]] = {"x": (kind, shape)}
    if key_source == "memory":
        taken["memory"] = (kind, shape)
    if mask != "none":
        taken["mask"] = (kind if mask == "add" else TensorProto.BOOL, mask_shape)
    given: dict[str, tuple[int, Any]] = {"y": (kind, shape), **dict.fromkeys(outputs, (kind, None))}
    return graph_of(nodes, taken, given, constants, opset=opset)


def feed(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Normal numbers, and a mask that hides some: of the last sample all."""
    x = np.random.default_rng(3).standard_normal((_N, _L, _D)).astype(np.float32)
    visible = np.arange(_L) < np.array([_L, 2, 0])[:, None]
    values: dict[str, NDArray[Any]] = {"x": x, "memory": x[:, ::-1]}
    for given in model.graph.input:
        if given.name == "mask":
            rank_4 = visible[:, None, None]
            inverted = any(node.op_type == "Where" and node.input[1] == "hidden" for node in model.graph.node)
            added = np.where(rank_4, np.float32(0), np.float32(_HIDDEN))
            values["mask"] = (rank_4 != inverted) if given.type.tensor_type.elem_type == TensorProto.BOOL else added
    return {given.name: values[given.name] for given in model.graph.input}


def run(model: onnx.ModelProto, given: dict[str, NDArray[Any]], output: str = "y") -> NDArray[np.float32]:
    """One of its outputs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output], given)[0])


def operators(model: onnx.ModelProto) -> list[str]:
    """In their order."""
    return [node.op_type for node in model.graph.node]


def assert_fused(model: onnx.ModelProto) -> None:
    """One operator is left of it, with the same output."""
    given = feed(model)
    expected = run(model, given)
    fuse_attention(model)
    assert operators(model).count("Attention") == 1
    assert not {"Softmax", "MatMul", "Reshape"} & set(operators(model))
    np.testing.assert_allclose(run(model, given), expected, rtol=1e-5, atol=1e-6)


def assert_left_alone(model: onnx.ModelProto) -> None:
    """No byte of it changes."""
    before = model.SerializeToString()
    fuse_attention(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
@pytest.mark.parametrize("mask", ["where visible", "where hidden", "add", "none"])
def test_masks(mask: Mask, opset: int) -> None:
    """Rule 3, in every form that the operators have had; a row that is hidden as a whole has equal weights."""
    assert_fused(attention(mask, opset=opset))


def test_the_oldest_operators() -> None:
    """Where there is no Where."""
    assert_fused(attention("add", opset=8))


@pytest.mark.parametrize("scale", ["Mul", "Div", "none"])
@pytest.mark.parametrize("keys_at_once", [True, False])
def test_scales_and_keys(scale: Literal["Mul", "Div", "none"], keys_at_once: bool) -> None:
    """Rules 1 and 2."""
    assert_fused(attention(scale=scale, keys_at_once=keys_at_once))


def test_against_the_formula() -> None:
    """Equation 1 of the paper, in numpy and float64."""
    model = attention("add", mask_shape=(1, _H, "length", "length"))
    named = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(float) for tensor in model.graph.initializer}
    x = feed(model)["x"]
    bias = np.random.default_rng(5).standard_normal((1, _H, _L, _L)).astype(np.float32)
    q, k, v = ((x @ named[f"{n}.w"] + named[f"{n}.b"]).reshape(_N, _L, _H, -1).swapaxes(1, 2) for n in ("q", "k0", "v"))
    scores = np.exp(q @ k.swapaxes(2, 3) * 0.5 + bias)
    expected = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(x.shape)
    fuse_attention(model)
    assert operators(model).count("Attention") == 1
    np.testing.assert_allclose(run(model, {"x": x, "mask": bias}), expected, rtol=1e-4, atol=1e-5)


def test_what_is_left_of_dropout() -> None:
    """Exporters leave an Identity where dropout is in training."""
    model = attention()
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.output[0] = "undropped"
    position = list(model.graph.node).index(softmax)
    model.graph.node.insert(position + 1, helper.make_node("Identity", ["undropped"], ["weights"]))
    assert_fused(model)


def test_weights_that_are_stored_transposed() -> None:
    """As torch stores them."""
    model = attention()
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[0] == "x":
            node.input[1] = f"{node.input[1]}.t"
    turned = [helper.make_node("Transpose", [f"{n}.w"], [f"{n}.w.t"], perm=[1, 0]) for n in ("q", "k0", "v")]
    for node in reversed(turned):
        model.graph.node.insert(0, node)
    assert_fused(model)


def test_blocks_share_their_mask() -> None:
    """Two in a row: both become one operator, and the mask is prepared once."""
    model = attention()
    again = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    made = {name for node in again for name in node.output}
    for node in again:
        node.input[:] = ["y" if name == "x" else f"{name}.2" if name in made else name for name in node.input]
        node.output[:] = [f"{name}.2" for name in node.output]
    model.graph.node.extend([*again, helper.make_node("Identity", ["y.2"], ["out"])])
    model.graph.output[0].name = "out"
    given = feed(model)
    expected = run(model, given, "out")
    fuse_attention(model)
    assert operators(model).count("Attention") == 2
    assert operators(model).count("Expand") == 1
    np.testing.assert_allclose(run(model, given, "out"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "form",
    [
        {"key_source": "memory"},  # cross-attention
        {"axis": 2},
        {"opset": 7, "mask": "add"},  # there is no Expand yet
        {"hidden": -1e30},  # scores may be as low
        {"hidden": -1e4},  # a row that is hidden as a whole would have other weights
        {"hidden": 0.0},
        {"mask_shape": ("batch", 1, 1, 1)},
        {"mask_shape": ("batch", 1, 1, "other")},
        {"mask_shape": (1, "length")},
        {"mask_shape": ("rows", 1, 1, "length")},
        {"kind": TensorProto.FLOAT16, "hidden": -6e4},
        {"outputs": ["weights"]},
        {"outputs": ["v.biased"]},
        {"split": (-1, 5, _H, _D // _H)},  # of a length that is not told to be 5
    ],
)  # fmt: skip
def test_what_is_left_alone(form: dict[str, Any]) -> None:
    """Each breaks one rule."""
    assert_left_alone(attention(**form))


def test_extents_are_not_taken_from_declarations() -> None:
    """Those of a file may be wrong: here heads of 5 tokens are declared to be of any length."""
    model = attention(split=(-1, _L, _H, _D // _H))
    for name in ("q", "k0", "v"):
        declared = helper.make_tensor_value_info(f"{name}.split", TensorProto.FLOAT, ["batch", "length", _H, _D // _H])
        model.graph.value_info.append(declared)
    assert_left_alone(model)


@pytest.mark.parametrize("tensor", ["q", "scores", "weights", "joined"])
def test_what_another_node_reads_is_left_alone(tensor: str) -> None:
    """Rule 5: such as an observer."""
    model = attention()
    model.graph.node.append(helper.make_node("ReduceMax", [tensor], ["seen"]))
    model.graph.output.append(onnx.ValueInfoProto(name="seen"))
    assert_left_alone(model)


@pytest.mark.parametrize("transposed", [False, True])
def test_quantized_weights_are_left_alone(transposed: bool) -> None:
    """ONNX Runtime has operators for them, and looks for what is written out."""
    model = attention()
    next(tensor for tensor in model.graph.initializer if tensor.name == "v.w").name = "v.w.float"
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["v.w.float", "scale"], ["v.w.int8"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["v.w.int8", "scale"], ["v.w.1" if transposed else "v.w"]))
    if transposed:
        model.graph.node.insert(2, helper.make_node("Transpose", ["v.w.1"], ["v.w"], perm=[1, 0]))
    assert_left_alone(model)


def test_functions_of_the_model_are_not_operators_of_onnx() -> None:
    """Whatever their names."""
    model = attention()
    next(node for node in model.graph.node if node.op_type == "Softmax").domain = "mine"
    assert_left_alone(model)


@pytest.mark.parametrize("scale", [0.0, np.inf, 1e-60])
def test_scales_that_the_operator_does_not_know(scale: float) -> None:
    """It reads 0 as 1 / sqrt(D/H); one that float32 does not hold is 0, too."""
    model = attention()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "scale")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(scale), "scale"))
    model.graph.node.insert(0, helper.make_node("CastLike", ["scale", "x"], ["scale.float"]))
    for node in model.graph.node:
        node.input[:] = ["scale.float" if name == "scale" and node.op_type == "Mul" else name for name in node.input]
    assert_left_alone(model)


@pytest.mark.parametrize(("name", "kind", "shape"), [("scale", TensorProto.FLOAT, []), ("split", TensorProto.INT64, [4])])
def test_constants_that_a_run_may_replace(name: str, kind: int, shape: list[int]) -> None:
    """They are none."""
    model = attention()
    model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    assert_left_alone(model)


def test_outputs_that_are_declared_wrongly() -> None:
    """The last Reshape exchanges samples and tokens, whatever the graph says of its output."""
    model = attention()
    model.graph.node[-1].input[1] = "exchanged"
    for node in [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Shape", ["x"], ["l"], start=1, end=2),
        helper.make_node("Concat", ["l", "n", "d"], ["exchanged"], axis=0),
    ]:
        model.graph.node.insert(len(model.graph.node) - 1, node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([_D]), "d"))
    assert_left_alone(model)


def test_names_of_the_model_stay_its_own() -> None:
    """Also such as `y.weight` beside an attention whose output is y."""
    model = attention()
    names = [f"y.{part}" for part in ("weight", "bias", "mask", "unread", "mask.shape", "attention")]
    for name in names:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), name))
    model.graph.node.append(helper.make_node("Sum", names, ["sum"], name="y"))
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, [3]))
    expected = run(model, feed(model))
    fuse_attention(model)
    assert operators(model).count("Attention") == 1
    np.testing.assert_allclose(run(model, feed(model)), expected, rtol=1e-5, atol=1e-6)


def test_a_mask_is_made_before_it_is_read() -> None:
    """Of two attentions that share it, also where the second softmax belongs to the first output."""
    model = attention()
    *first, last = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    second = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    made = {name for node in second for name in node.output}
    for node in second:
        node.input[:] = [f"{name}.2" if name in made else name for name in node.input]
        node.output[:] = [f"{name}.2" for name in node.output]
    del model.graph.node[:]
    model.graph.node.extend([*first, *second, last, helper.make_node("Add", ["y", "y.2"], ["both"])])
    model.graph.output[0].name = "both"
    expected = run(model, feed(model), "both")
    fuse_attention(model)
    assert operators(model).count("Attention") == 2
    ready = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer} | {""}
    for node in model.graph.node:
        assert set(node.input) <= ready
        ready |= set(node.output)
    np.testing.assert_allclose(run(model, feed(model), "both"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(_N, 1, 1, 1), (1, 1, 1, 1)])
def test_a_mask_that_is_smaller_than_it_says(shape: tuple[int, ...]) -> None:
    """It is stretched, as it was."""
    model = attention("add")
    given = {"x": feed(model)["x"], "mask": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    expected = run(model, given)
    fuse_attention(model)
    assert operators(model).count("Attention") == 1
    np.testing.assert_allclose(run(model, given), expected, rtol=1e-5, atol=1e-6)
