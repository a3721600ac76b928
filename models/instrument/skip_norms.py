"""Makes visible what ONNX Runtime's SkipLayerNormalization and SkipSimplifiedLayerNormalization add before they normalize.

Rules:
    1. Such a node is a residual add and the normalization of its sum, which is its optional fourth output. Where the node does not
       have that output, it gets it, with the name of its first output and `.sum`.
    2. Its bias, the last input, is that of the layer whose output is added: of the input that is made of the other. An Add of its
       own takes it out of the node, so that both tensors of the residual add exist.
"""

import onnx
from onnx import helper

from models.instrument.graph import Graph

SUM = 3
"""Position of the sum among the outputs."""
BIAS = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}
"""Operator (domain com.microsoft) -> position of the bias among the inputs."""


def expose_sums(model: onnx.ModelProto) -> bool:
    """Applies the rules in place; true if that has changed the model."""
    graph = Graph(model)
    nodes: list[onnx.NodeProto] = []
    changed = False
    for node in graph.nodes:
        if node.op_type in BIAS:
            if len(node.output) <= SUM or not node.output[SUM]:
                node.output.extend([""] * (SUM + 1 - len(node.output)))
                node.output[SUM] = f"{node.output[0]}.sum"
                changed = True
            position = BIAS[node.op_type]
            if len(node.input) > position and node.input[position]:
                nodes.append(_take_bias_out(graph, node, position))
                changed = True
        nodes.append(node)
    if changed:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)
    return changed


def _take_bias_out(graph: Graph, node: onnx.NodeProto, position: int) -> onnx.NodeProto:
    """Rule 2."""
    branch = 1 if graph.depends(node.input[1], on=node.input[0]) else 0
    biased = f"{node.output[0]}.residual"
    add = helper.make_node("Add", [node.input[branch], node.input[position]], [biased], name=f"{node.name or node.output[0]}.bias")
    node.input[branch] = biased
    del node.input[position:]
    return add
