"""Small ONNX graphs built by hand, as a stranger would bring them: each with something that the shipped models do not have."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTH = 8
Shape = Sequence[int | str | None] | Sequence[int | str]


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Shape]],
    outputs: dict[str, tuple[int, Shape | None]],
    constants: dict[str, NDArray[Any]] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of these nodes; inputs and outputs are given by their type and shape."""
    taken = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()]
    tensors = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", taken, given, tensors), opset_imports=opsets, ir_version=9)


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers, small enough that sums stay near 1."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0]), np.float32)


def block(batch: int | str | None = "batch", *, length: int | str = "length") -> onnx.ModelProto:
    """y = LayerNorm(x + x W): float32 (batch, length, 8) -> the same."""
    shape = [batch, length, WIDTH]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["f"]),
        helper.make_node("Add", ["f", "x"], ["s"], name="add"),
        helper.make_node("LayerNormalization", ["s", "gamma", "beta"], ["y"], name="norm"),
    ]
    constants = {"w": weights(WIDTH, WIDTH), "gamma": weights(WIDTH), "beta": weights(WIDTH, seed=1)}
    return graph_of(nodes, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)}, constants)


def detector() -> onnx.ModelProto:
    """Of the normalized rows of `boxes` (1, 6, 4) those whose norm is above `threshold`: as many as there are, of all images."""
    nodes = [
        helper.make_node("LayerNormalization", ["boxes", "gamma"], ["n"], name="norm"),
        helper.make_node("ReduceMax", ["n"], ["score"], axes=[2], keepdims=0),
        helper.make_node("Greater", ["score", "threshold"], ["found"]),
        helper.make_node("NonZero", ["found"], ["where"]),
        helper.make_node("Transpose", ["where"], ["index"]),
        helper.make_node("GatherND", ["n", "index"], ["detections"]),
    ]
    inputs: dict[str, tuple[int, Shape]] = {
        "boxes": (TensorProto.FLOAT, [1, 6, 4]),
        "threshold": (TensorProto.FLOAT, []),
    }
    outputs: dict[str, tuple[int, Shape | None]] = {
        "detections": (TensorProto.FLOAT, None),
        "index": (TensorProto.INT64, ["found", 2]),
    }
    return graph_of(nodes, inputs, outputs, {"gamma": np.ones(4, np.float32)})


def types() -> onnx.ModelProto:
    """Takes and gives back one tensor of every datatype of the Open Inference Protocol: `of_TYPE` (batch, 2) -> `same_TYPE`."""
    names = (
        "BOOL",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "FLOAT16",
        "FLOAT",
        "DOUBLE",
        "STRING",
    )
    nodes = [helper.make_node("Identity", [f"of_{name}"], [f"same_{name}"]) for name in names]
    inputs: dict[str, tuple[int, Shape]] = {f"of_{name}": (getattr(TensorProto, name), ["batch", 2]) for name in names}
    outputs: dict[str, tuple[int, Shape | None]] = {f"same_{name}": (getattr(TensorProto, name), ["batch", 2]) for name in names}
    return graph_of(nodes, inputs, outputs)


def masked(mask: str = "keep") -> onnx.ModelProto:
    """An encoder whose mask has a name of its own: ids and mask int64 (batch, length) -> sum of the normalized embeddings."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("LayerNormalization", ["e", "gamma"], ["n"], name="norm"),
        helper.make_node("Cast", [mask], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["column"]),
        helper.make_node("Mul", ["n", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["pooled"], keepdims=0),
    ]
    shape = ["batch", "length"]
    constants = {"table": weights(200, WIDTH), "gamma": weights(WIDTH), "last": np.array([2]), "middle": np.array([1])}
    inputs: dict[str, tuple[int, Shape]] = {"ids": (TensorProto.INT64, shape), mask: (TensorProto.INT64, shape)}
    return graph_of(nodes, inputs, {"pooled": (TensorProto.FLOAT, ["batch", WIDTH])}, constants)


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Writes a model; tells where."""
    onnx.save(model, path)
    return path
