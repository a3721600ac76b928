"""Folds the scale of a batch normalization into the convolution before it: a graph in, the same with other weights out.

ONNX Runtime folds all of a normalization that nothing watches, `scale * conv(x) + shift`, into its convolution. Where the tensor
between them is watched it cannot, and would keep the weights of the same convolution a second time, unscaled. With the scale in the
weights, computed as it does, both graphs have the same, and can share them; an observer divides what it sees by the scale.

Rules:
    1. The output of the convolution is read by the normalization alone, and its weights are constants of float32.
    2. Every channel has a scale of 1e-12 to 8. What is divided by its scale keeps its digits, but 0 cannot be divided by; a
       product with less could leave the range of float32 where the activation does not, and one with more could become infinite:
       with 8, activations from 4e37 on may count as not finite before the normalization, as after it.
    3. The normalization keeps its shift.
"""

from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from models.instrument.graph import Graph

_LEAST, _MOST = 1e-12, 8.0
_CONSTANTS = ("Cast", "Constant", "Identity")  # not the arithmetic of quantized weights, which ONNX Runtime looks for
_EPSILON = 1e-5  # where the node does not say


class _Inputs(NamedTuple):
    """Names of the new constants."""

    weight: str
    bias: str
    scale: str
    shift: str
    mean: str
    var: str


def fold_scale(
    model: onnx.ModelProto, graph: Graph, norm: onnx.NodeProto, shift: NDArray[np.float32]
) -> NDArray[np.float32] | None:
    """Folds one, in place.

    Args:
        model: the graph.
        graph: an index over it, as it was.
        norm: a BatchNormalization at inference between tensors of float32.
        shift: what it adds to the scaled, (C,).

    Returns:
        the scale (C,), by which what enters the normalization is now multiplied; None where the rules leave the graph unchanged.
    """
    before = norm.input[0]
    convolution = graph.producer(before)
    if convolution is None or convolution.op_type != "Conv" or any(value.name == before for value in model.graph.output):
        return None
    given, read = {value.name for value in model.graph.input}, {*convolution.input[1:], *norm.input[1:]}
    if given & read or any(graph.depends(name, on=each) for name in read if graph.producer(name) is not None for each in given):
        return None  # a run may bring others
    constants = [_constant(graph, name) for name in [*convolution.input[1:], norm.input[1], norm.input[4]]]
    if len(graph.readers(before)) > 1 or any(each is None or each.dtype != np.float32 for each in constants):
        return None
    weight, *bias, gamma, var = (np.asarray(each, np.float32) for each in constants)
    epsilon = next((each.f for each in norm.attribute if each.name == "epsilon"), _EPSILON)
    scale = gamma / np.sqrt(var + np.float32(epsilon))
    if not ((np.abs(scale) >= _LEAST) & (np.abs(scale) <= _MOST)).all():
        return None
    names = _Inputs(*(f"normscope.folded.{before}.{field}" for field in _Inputs._fields))
    made = {node.output[0]: node for node in model.graph.node if node.output}
    unscaled, made[before].input[1] = convolution.input[1], names.weight
    _add(model, names.weight, weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
    _remove_unread(model, graph, unscaled)
    if bias:
        made[before].input[2] = names.bias
        _add(model, names.bias, bias[0] * scale)
    node = made[norm.output[0]]
    node.input[1:] = names[2:]
    for name, value in zip(names[2:], (np.ones_like(scale), shift, np.zeros_like(scale), np.ones_like(scale)), strict=True):
        _add(model, name, value)
    kept = [each for each in node.attribute if each.name != "epsilon"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("epsilon", 0.0)])
    return np.asarray(scale)


def _constant(graph: Graph, name: str) -> NDArray[np.generic] | None:
    producer = graph.producer(name)
    return graph.constant(name) if producer is None or producer.op_type in _CONSTANTS else None


def _remove_unread(model: onnx.ModelProto, graph: Graph, weight: str) -> None:
    """Of a weight that its only reader no longer reads, and that was not computed: both together may be more than a file holds."""
    tensors = model.graph.initializer
    if len(graph.readers(weight)) == 1:
        for i in [i for i, tensor in enumerate(tensors) if tensor.name == weight]:
            del tensors[i]


def _add(model: onnx.ModelProto, name: str, value: NDArray[np.float32]) -> None:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
