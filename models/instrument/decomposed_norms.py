"""Finds the normalizations that an exporter has written out as arithmetic: the graph in, one `Norm` for each pattern out.

Rules, where Cast and Identity may lie between any two operators:
    1. y = (x - m) / s is a layer norm and y = x / s an RMS norm, if rules 2 to 4 hold. Instead of dividing by s, y may be a product
       with 1 / s: a Reciprocal, 1 divided by s, or a power of -0.5.
    2. s is the square root (Sqrt, or a power of 0.5) of v + epsilon, and epsilon one constant number.
    3. v is the ReduceMean of the square (Pow by 2, or Mul with itself) of what y divides: x - m, or for the RMS norm x. The
       difference may be written out twice. m is the ReduceMean of x over the same axes as v.
    4. The axes are the last ones, or the channels, axis 1, alone. A mean over the batch or over space is none of these norms; the
       last axes of an image (N, C, H, W), from 2 on, are space unless gamma or beta has extents along them.
    5. gamma is the constant with an axis that y alone is multiplied by next, beta the one that is added after that; both may be
       missing. A Cast before gamma belongs to the norm.
    6. A group norm is a Reshape to (N, groups, ...), an InstanceNormalization with gamma 1 and beta 0, and a Reshape back; rule 5
       holds for what follows. Its channels lie on axis 1.
    7. Division by the root of a sum (the L2 norm of a vector) or by a constant (attention scores), and by the deviation of another
       tensor, are not normalizations.
    8. x * k + (beta - m * k) with k = gamma / s, as TensorFlow writes a layer norm, is one, with s and m of rules 2 to 4; gamma may
       be missing, and the last part be beta + (-m) * k.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from models.instrument.graph import Dimension, Graph, attribute
from models.instrument.naming import module_path
from models.instrument.norms import DEFAULT_EPSILON, Norm, NormKind

_SAME_VALUES = ("Cast", "Identity")


@dataclass(frozen=True)
class _Quotient:
    """y = `dividend` / sqrt(`variance` + `epsilon`): what rules 1 and 2 find."""

    dividend: str
    variance: str
    epsilon: float


def find_decomposed_norms(graph: Graph) -> list[Norm]:
    """All norms of the rules, in the order of execution."""
    found = (_group_norm(graph, node) or _layer_or_rms_norm(graph, node) or _folded_norm(graph, node) for node in graph.nodes)
    return [norm for norm in found if norm is not None]


def _layer_or_rms_norm(graph: Graph, node: onnx.NodeProto) -> Norm | None:
    quotient = _quotient(graph, node)
    if quotient is None:
        return None
    mean_square = _made_by(graph, quotient.variance, "ReduceMean")
    squared = None if mean_square is None else _squared(graph, mean_square.input[0])
    if mean_square is None or squared is None:
        return None
    axes = reduced_axes(graph, mean_square)
    centred = _centred(graph, quotient.dividend, axes)
    if centred is not None and _centred(graph, squared, axes) == centred:
        kind: NormKind = "layer_norm"
        before = centred
    elif _origin(graph, squared) == _origin(graph, quotient.dividend):
        kind, before = "rms_norm", _origin(graph, quotient.dividend)
    else:
        return None
    last_axis = _is_over_last_axes(graph, before, axes)
    if not last_axis and axes != (1,):
        return None
    norm = _with_affine(graph, [mean_square, node], kind, before, quotient.epsilon, last_axis=last_axis)
    return None if axes is not None and _is_over_space(graph, norm, axes) else norm


def _is_over_space(graph: Graph, norm: Norm, axes: tuple[int, ...]) -> bool:
    """Rule 4: each channel of an image for itself, an instance norm written out."""
    shape = graph.shape(norm.before)
    if shape is None or len(axes) < 2 or axes != tuple(range(2, len(shape))):
        return False
    affine = [name for node in norm.nodes[2:] for name in node.input if graph.is_constant(name)]
    return all(_last_extent(graph, name) == 1 for name in affine)


def _last_extent(graph: Graph, tensor: str) -> Dimension:
    """Of gamma or beta, which have an axis by rule 5."""
    value, shape = graph.constant(tensor), graph.shape(tensor)
    return value.shape[-1] if value is not None else (shape or [None])[-1]


def _quotient(graph: Graph, node: onnx.NodeProto) -> _Quotient | None:
    """Rules 1 and 2."""
    if node.op_type == "Div":
        return _over_root(graph, node.input[0], node.input[1])
    if node.op_type != "Mul":
        return None
    found = (_times_inverse(graph, dividend, factor) for dividend, factor in (node.input, reversed(node.input)))
    return next((each for each in found if each is not None), None)


def _times_inverse(graph: Graph, dividend: str, factor: str) -> _Quotient | None:
    """`dividend` times `factor`, if that is 1 / s."""
    inverse = _producer(graph, factor)
    if inverse is None:
        return None
    if inverse.op_type == "Reciprocal":
        return _over_root(graph, dividend, inverse.input[0])
    if inverse.op_type == "Div" and _number(graph, inverse.input[0]) == 1:
        return _over_root(graph, dividend, inverse.input[1])
    if inverse.op_type == "Pow" and _number(graph, inverse.input[1]) == -0.5:
        return _over_shifted(graph, dividend, inverse.input[0])
    return None


def _over_root(graph: Graph, dividend: str, divisor: str) -> _Quotient | None:
    root = _producer(graph, divisor)
    if root is None or not (root.op_type == "Sqrt" or (root.op_type == "Pow" and _number(graph, root.input[1]) == 0.5)):
        return None
    return _over_shifted(graph, dividend, root.input[0])


def _over_shifted(graph: Graph, dividend: str, shifted: str) -> _Quotient | None:
    add = _made_by(graph, shifted, "Add")
    if add is None:
        return None
    for variance, shift in (add.input, reversed(add.input)):
        epsilon = _number(graph, shift)
        if epsilon is not None:
            return _Quotient(dividend, variance, epsilon)
    return None


def _squared(graph: Graph, tensor: str) -> str | None:
    """What `tensor` is the square of."""
    node = _producer(graph, tensor)
    if node is None:
        return None
    if node.op_type == "Pow" and _number(graph, node.input[1]) == 2:
        return node.input[0]
    return node.input[0] if node.op_type == "Mul" and node.input[0] == node.input[1] else None


def _centred(graph: Graph, tensor: str, axes: tuple[int, ...] | None) -> str | None:
    """x, if `tensor` is x minus its mean over these axes."""
    difference = _made_by(graph, tensor, "Sub")
    if difference is None:
        return None
    mean = _made_by(graph, difference.input[1], "ReduceMean")
    x = _origin(graph, difference.input[0])
    if mean is None or _origin(graph, mean.input[0]) != x or reduced_axes(graph, mean) != axes:
        return None
    return x


def _group_norm(graph: Graph, node: onnx.NodeProto) -> Norm | None:
    """Rule 6."""
    if node.op_type != "InstanceNormalization":
        return None
    into = _made_by(graph, node.input[0], "Reshape")
    back = _only_reader(graph, node.output[0])
    gamma, beta = (graph.constant(name) for name in node.input[1:3])
    if into is None or back is None or back.op_type != "Reshape" or gamma is None or beta is None:
        return None
    if not (np.all(gamma == 1) and np.all(beta == 0)):
        return None
    epsilon = attribute(node, "epsilon", DEFAULT_EPSILON)
    assert isinstance(epsilon, float)  # by the operator's schema
    return _with_affine(graph, [into, node, back], "group_norm", into.input[0], epsilon, last_axis=False)


def _folded_norm(graph: Graph, node: onnx.NodeProto) -> Norm | None:
    """Rule 8."""
    for scaled, shifted in (node.input, reversed(node.input)) if node.op_type == "Add" else ():
        product, shift = _made_by(graph, scaled, "Mul"), _shift(graph, shifted)
        if product is None or shift is None:
            continue
        for before, k in (product.input, reversed(product.input)):
            if _origin(graph, k) == shift.k and _origin(graph, before) == _origin(graph, shift.mean.input[0]):
                return _folded(graph, node, shift)
    return None


@dataclass(frozen=True)
class _Shift:
    """beta - mean * k, made by `node`."""

    node: onnx.NodeProto
    beta: str
    mean: onnx.NodeProto
    k: str


def _shift(graph: Graph, tensor: str) -> _Shift | None:
    node = _producer(graph, tensor)
    if node is None or node.op_type not in ("Add", "Sub"):
        return None
    for beta, other in (node.input,) if node.op_type == "Sub" else (node.input, reversed(node.input)):
        product = _made_by(graph, other, "Mul")
        if product is None or not (graph.is_constant(beta) and _has_axis(graph, beta)):
            continue
        for factor, k in (product.input, reversed(product.input)):
            negative = None if node.op_type == "Sub" else _made_by(graph, factor, "Neg")
            mean = _made_by(graph, factor if negative is None else negative.input[0], "ReduceMean")
            if mean is not None and (node.op_type == "Sub") == (negative is None):
                return _Shift(node, beta, mean, _origin(graph, k))
    return None


def _folded(graph: Graph, node: onnx.NodeProto, shift: _Shift) -> Norm | None:
    x = _origin(graph, shift.mean.input[0])
    scale, inverse, gamma = _producer(graph, shift.k), shift.k, None
    if scale is not None and scale.op_type == "Mul":
        for one, other in (scale.input, reversed(scale.input)):
            if graph.is_constant(other) and _has_axis(graph, other):
                inverse, gamma = one, other
    quotient = _times_inverse(graph, x, inverse)
    mean_square = None if quotient is None else _made_by(graph, quotient.variance, "ReduceMean")
    squared = None if mean_square is None else _squared(graph, mean_square.input[0])
    if quotient is None or mean_square is None or squared is None or scale is None:
        return None
    axes = reduced_axes(graph, mean_square)
    last_axis = _is_over_last_axes(graph, x, axes)
    if _centred(graph, squared, axes) != x or reduced_axes(graph, shift.mean) != axes or not (last_axis or axes == (1,)):
        return None
    nodes = [mean_square, shift.mean, *([scale] if gamma else []), shift.node, node]
    return Norm(
        nodes=tuple(nodes),
        name=module_path(nodes),
        kind="layer_norm",
        before=x,
        after=node.output[0],
        last_axis=last_axis,
        epsilon=quotient.epsilon,
        gamma=_flat(graph, gamma) if gamma else None,
        beta=_flat(graph, shift.beta),
    )


def _with_affine(
    graph: Graph, nodes: list[onnx.NodeProto], kind: NormKind, before: str, epsilon: float, *, last_axis: bool
) -> Norm:
    """Rule 5; the last of `nodes` makes the normalized values."""
    gamma = beta = None
    scale, factor = _affine_step(graph, nodes[-1].output[0], "Mul")
    if scale is not None:
        nodes, gamma = [*nodes, scale], _flat(graph, factor)
    shift, term = _affine_step(graph, nodes[-1].output[0], "Add")
    if shift is not None:
        nodes, beta = [*nodes, shift], _flat(graph, term)
    return Norm(
        nodes=tuple(nodes),
        name=module_path(nodes),
        kind=kind,
        before=before,
        after=nodes[-1].output[0],
        last_axis=last_axis,
        epsilon=epsilon,
        gamma=gamma,
        beta=beta,
    )


def _affine_step(graph: Graph, tensor: str, operator: str) -> tuple[onnx.NodeProto | None, str]:
    """The operator that alone reads `tensor`, and the constant that it joins to it."""
    node = _only_reader(graph, tensor)
    if node is not None and node.op_type in _SAME_VALUES:
        tensor = node.output[0]
        node = _only_reader(graph, tensor)
    if node is None or node.op_type != operator:
        return None, ""
    other = node.input[1] if node.input[0] == tensor else node.input[0]
    return (node, other) if graph.is_constant(other) and _has_axis(graph, other) else (None, "")


def _has_axis(graph: Graph, tensor: str) -> bool:
    value, shape = graph.constant(tensor), graph.shape(tensor)
    return value.ndim > 0 if value is not None else bool(shape)


def _flat(graph: Graph, tensor: str) -> NDArray[np.float64] | None:
    value = graph.constant(tensor)
    return None if value is None else value.astype(np.float64).reshape(-1)


def _only_reader(graph: Graph, tensor: str) -> onnx.NodeProto | None:
    readers = graph.readers(tensor)
    return readers[0] if len(readers) == 1 else None


def _origin(graph: Graph, tensor: str) -> str:
    """The tensor that holds the same values before any Cast."""
    node = graph.producer(tensor)
    while node is not None and node.op_type in _SAME_VALUES:
        tensor = node.input[0]
        node = graph.producer(tensor)
    return tensor


def _producer(graph: Graph, tensor: str) -> onnx.NodeProto | None:
    return graph.producer(_origin(graph, tensor))


def _made_by(graph: Graph, tensor: str, operator: str) -> onnx.NodeProto | None:
    node = _producer(graph, tensor)
    return node if node is not None and node.op_type == operator else None


def _number(graph: Graph, tensor: str) -> float | None:
    value = graph.constant(tensor)
    return None if value is None or value.size != 1 else float(value.reshape(()))


def reduced_axes(graph: Graph, reduction: onnx.NodeProto) -> tuple[int, ...] | None:
    """Sorted axes, an attribute up to opset 17 and an input since; None for all axes, or where the graph computes them."""
    value = graph.constant(reduction.input[1]) if len(reduction.input) > 1 and reduction.input[1] else None
    axes: Sequence[int] = value.reshape(-1).tolist() if value is not None else attribute(reduction, "axes", ())  # type: ignore[assignment]  # a list of integers, by the schema
    shape = graph.shape(reduction.input[0])
    if shape is not None:
        axes = [axis % len(shape) for axis in axes]
    return tuple(sorted(axes)) or None


def _is_over_last_axes(graph: Graph, tensor: str, axes: tuple[int, ...] | None) -> bool:
    if axes is None:
        return False
    shape = graph.shape(tensor)
    end = len(shape) if shape is not None and axes[0] >= 0 else 0
    return axes == tuple(range(end - len(axes), end)) and (shape is None or len(axes) < len(shape))
