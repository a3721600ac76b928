"""Puts new nodes into a graph where they are needed, so that the order of its nodes stays one that can be executed."""

from collections.abc import Mapping, Sequence

import onnx


def splice(model: onnx.ModelProto, before: Mapping[str, Sequence[onnx.NodeProto]]) -> None:
    """Inserts nodes in place: `before` maps an output of a node to what comes right before it, "" to what comes first of all."""
    nodes = list(before.get("", ()))
    for node in model.graph.node:
        for output in node.output:
            nodes += before.get(output, ()) if output else ()
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor that shape inference has typed."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}
