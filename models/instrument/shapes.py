"""Shapes and types of the tensors of a graph, also behind operators that ONNX's shape inference does not know. Changes no graph."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.instrument.graph import Graph, opset
from models.instrument.skip_norms import BIAS, SUM

_KEEPS_SHAPE = {"SimplifiedLayerNormalization", "GroupNormalization", "Gelu", "FastGelu", "BiasGelu", "QuickGelu"}
_FIRST = "normscope.first"
_UNSQUEEZE_OPSET = 13  # the first with axes as an input
_LAYER_NORM_OPSET = 17  # the first whose shape inference knows LayerNormalization; before, it was ONNX Runtime's own


def infer_shapes(model: onnx.ModelProto, extents: Mapping[str, int]) -> onnx.ModelProto:
    """A copy of the model in which the named dynamic dimensions have these extents, with the shapes that follow from them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.value_info, *copy.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in extents:
                dimension.dim_value = extents[dimension.dim_param]
    if not any(_stand_ins(node, copy) for node in copy.graph.node):
        return onnx.shape_inference.infer_shapes(copy, data_prop=True)
    known = onnx.ModelProto()
    known.CopyFrom(copy)
    del known.graph.node[:]
    for node in copy.graph.node:
        known.graph.node.extend(_stand_ins(node, copy) or [node])
    inferred = onnx.shape_inference.infer_shapes(known, data_prop=True)
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(inferred.graph.value_info)
    return copy


def follow_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the shapes that follow from those of its inputs, and from constants that no run may replace, which it has alone.

    What its file says of other tensors is left out: it may be wrong, or that of an example. In return extents are followed where
    torch reshapes each of them, a number, to one element, behind which ONNX's inference does not see it.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = {value.name for value in copy.graph.input}
    tensors = copy.graph.initializer
    for i in reversed(range(len(tensors))):
        if tensors[i].name in given:
            del tensors[i]
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = infer_shapes(copy, {})
    if opset(model) < _UNSQUEEZE_OPSET:
        return inferred
    graph = Graph(inferred)
    copy.graph.initializer.append(numpy_helper.from_array(np.array([0]), _FIRST))
    for node in copy.graph.node:
        if node.op_type == "Reshape" and graph.shape(node.input[0]) == [] and graph.shape(node.output[0]) == [1]:
            node.CopyFrom(helper.make_node("Unsqueeze", [node.input[0], _FIRST], node.output))
    followed = infer_shapes(copy, {})
    del followed.graph.node[:]
    followed.graph.node.extend(model.graph.node)
    return followed


def _stand_ins(node: onnx.NodeProto, model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Operators of ONNX whose outputs have the shapes and types of those of a node that it does not know; none for all others."""
    if node.op_type in BIAS:
        total = node.output[SUM] if len(node.output) > SUM and node.output[SUM] else f"{node.output[0]}.stand_in"
        return [helper.make_node("Add", node.input[:2], [total]), helper.make_node("Identity", [total], node.output[:1])]
    if node.op_type in _KEEPS_SHAPE or (node.op_type == "LayerNormalization" and opset(model) < _LAYER_NORM_OPSET):
        return [helper.make_node("Identity", node.input[:1], node.output[:1])]
    return []
