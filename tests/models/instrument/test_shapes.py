"""Shapes and types reach behind operators that ONNX's shape inference does not know."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.instrument.shapes import follow_shapes, infer_shapes
from tests import graphs


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        (helper.make_node("GroupNormalization", ["x", "g", "g"], ["h"], num_groups=8), 18),
        (helper.make_node("GroupNormalization", ["x", "g", "g"], ["h"], num_groups=4), 21),
        (helper.make_node("LayerNormalization", ["x", "g"], ["h"]), 16),
        (helper.make_node("FastGelu", ["x"], ["h"], domain="com.microsoft"), 17),
        (helper.make_node("BiasGelu", ["x", "g"], ["h"], domain="com.microsoft"), 17),
    ],
)
def test_what_follows_keeps_shape_and_type(node: onnx.NodeProto, opset: int) -> None:
    """A tensor two operators later has the extents and the type of the input."""
    shape: list[int | str] = ["n", 8, 3, 8]
    nodes = [node, helper.make_node("Relu", ["h"], ["r"]), helper.make_node("Neg", ["r"], ["y"])]
    inputs: dict[str, tuple[int, graphs.Shape]] = {"x": (TensorProto.FLOAT16, shape), "g": (TensorProto.FLOAT16, [8])}
    model = graphs.graph_of(nodes, inputs, {"y": (TensorProto.FLOAT16, shape)}, opset=opset)
    (found,) = [value for value in infer_shapes(model, {"n": 2}).graph.value_info if value.name == "r"]
    assert found.type.tensor_type.elem_type == TensorProto.FLOAT16
    assert [extent.dim_value for extent in found.type.tensor_type.shape.dim] == [2, 8, 3, 8]


def test_extents_are_followed_without_declarations() -> None:
    """Through numbers that torch reshapes to one element; and what a file says of tensors in between does not count."""
    nodes = [
        helper.make_node("Shape", ["x"], ["length.1"], start=1, end=2),
        helper.make_node("Squeeze", ["length.1"], ["length"]),
        helper.make_node("Reshape", ["length", "whole"], ["length.2"]),
        helper.make_node("Concat", ["whole", "length.2", "two", "four"], ["split"], axis=0),
        helper.make_node("Reshape", ["x", "split"], ["h"]),
        helper.make_node("Neg", ["h"], ["y"]),
    ]
    constants = {"whole": np.array([-1]), "two": np.array([2]), "four": np.array([4])}
    kind = TensorProto.FLOAT
    model = graphs.graph_of(nodes, {"x": (kind, ["batch", "length", 8])}, {"y": (kind, None)}, constants)
    model.graph.value_info.append(helper.make_tensor_value_info("h", kind, [3, 5, 2, 4]))
    followed = follow_shapes(model)
    assert followed.graph.node == model.graph.node
    (found,) = [value for value in followed.graph.value_info if value.name == "h"]
    assert [extent.dim_param or extent.dim_value for extent in found.type.tensor_type.shape.dim][1:] == ["length", 2, 4]
