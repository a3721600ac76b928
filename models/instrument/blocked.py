"""Lets observers read ONNX Runtime's blocked layout: a graph that it optimized in, the same without their conversions out.

Where a processor allows, ONNX Runtime keeps the activations of convolutions as (N, C / block, H, W, block), and converts them by
`ReorderOutput` for operators that do not know this layout. An observer knows it; it takes the input of the conversion instead.
"""

import onnx
from onnx import helper

from models.instrument.observers import BLOCKED, CHANNELS_FIRST, DOMAIN, place_observers

BLOCKED_DOMAIN = "com.microsoft.nchwc"
_READ = (0, 3)  # inputs of an observer that are activations


def read_blocked(model: onnx.ModelProto, block: int) -> int:
    """Changes, in place, the observers all of whose activations come from conversions, and tells how many.

    Args:
        model: as ONNX Runtime saves it after optimization.
        block: channels in a block.
    """
    graph = model.graph
    conversions = {node.output[0]: node for node in graph.node if node.domain == BLOCKED_DOMAIN and node.op_type == "ReorderOutput"}
    changed = 0
    for node in graph.node:
        if node.domain != DOMAIN:
            continue
        attributes = {attribute.name: attribute for attribute in node.attribute}
        positions = [i for i in _READ if node.input[i]]
        found = [conversions.get(node.input[i]) for i in positions]
        converted = [conversion for conversion in found if conversion is not None and not _attribute(conversion, "channels_last")]
        if attributes["layout"].i != CHANNELS_FIRST or len(converted) < len(positions):
            continue
        for i, conversion in zip(positions, converted, strict=True):
            node.input[i] = conversion.input[0]
        attributes["layout"].i, attributes["block"].i = BLOCKED, block
        attributes["channels"].i = _attribute(converted[0], "channels")
        changed += 1
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for conversion in conversions.values():
        if conversion.output[0] not in read:
            graph.node.remove(conversion)
    place_observers(model)
    return changed


def layout_probe(channels: int) -> onnx.ModelProto:
    """A graph `x` (1, channels, 1, 2) -> `y`, x in the blocked layout: where x[0, 0, 0, 1] went tells the block."""
    node = helper.make_node("ReorderInput", ["x"], ["y"], domain=BLOCKED_DOMAIN)
    shape = [1, channels, 1, 2]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph([node], "layout", values[:1], values[1:])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(BLOCKED_DOMAIN, 1)], ir_version=9
    )


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
