"""Adds taps: a model and tensor names in, the same model with those tensors as further outputs out. Changes no node."""

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from models.instrument.shapes import infer_shapes

_WIDENED = "normscope.float."


class UnknownTensorError(ValueError):
    """A tap names a tensor that the graph does not make."""


def add_taps(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of the model with each of `tensors` (of any shape) as an output after its own, in the given order.

    Raises:
        UnknownTensorError: a name is neither an input nor made by a node of the main graph.
    """
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    made = {name for node in tapped.graph.node for name in node.output} | {value.name for value in tapped.graph.input}
    present = {value.name for value in tapped.graph.output}
    types = _types(model) if tensors else {}
    for name in dict.fromkeys(tensors):
        if name not in made:
            raise UnknownTensorError(f"the graph has no tensor {name!r}; export and inspect the model again")
        if name in present:
            continue
        if name in types:
            tapped.graph.output.append(helper.make_tensor_value_info(name, types[name], None))
        else:  # ONNX Runtime knows operators that shape inference does not
            tapped.graph.output.append(onnx.ValueInfoProto(name=name))
    return tapped


def widen(model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, str]:
    """Adds, in place, a Cast to float32 after each of `tensors` that is bfloat16, which numpy does not have.

    Returns:
        for each such tensor, the name of the other.
    """
    types = _types(model) if tensors else {}
    widened = {name: _WIDENED + name for name in tensors if types.get(name) == TensorProto.BFLOAT16}
    for name, other in widened.items():
        model.graph.node.append(helper.make_node("Cast", [name], [other], to=TensorProto.FLOAT))
    return widened


def _types(model: onnx.ModelProto) -> dict[str, int]:
    values = infer_shapes(model, {}).graph
    found = (*values.input, *values.value_info, *values.output)
    return {value.name: value.type.tensor_type.elem_type for value in found if value.type.tensor_type.elem_type}
