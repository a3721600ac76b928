"""Adds taps: a model and tensor names in, the same model with those tensors as further outputs out. Changes no node."""

from collections.abc import Iterable

import onnx


class UnknownTensorError(ValueError):
    """A tap names a tensor that the graph does not make."""


def add_taps(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model with each of `tensors` (of any shape) as an output after its own, in the given order.

    Raises:
        UnknownTensorError: a name is neither an input nor made by a node of the main graph.
    """
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    made = {name for node in tapped.graph.node for name in node.output} | {value.name for value in tapped.graph.input}
    present = {value.name for value in tapped.graph.output}
    values = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*values.input, *values.value_info)}
    for name in dict.fromkeys(tensors):
        if name not in made:
            raise UnknownTensorError(f"the graph has no tensor {name!r}; export and inspect the model again")
        if name not in present:
            tapped.graph.output.append(onnx.helper.make_tensor_value_info(name, types.get(name, onnx.TensorProto.FLOAT), None))
    return tapped
