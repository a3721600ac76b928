"""Makes one operator of self-attention: a graph in, the same with ONNX Runtime's `Attention` in the place of what was written out.

`softmax(Q K^T scale + mask) V` in H heads, with Q, K and V = x W + b (Vaswani et al. 2017, equation 1 and section 3.2.2). ONNX
Runtime has the operator, but its own search does not find it in what torch exports. A short text then takes a sixth less time: most
of it goes into calling operators, not into their numbers.

Rules:
    1. Q, K and V are products of one tensor (N, L, D) and constants (D, D), each plus a constant (D,), reshaped to (N, L, H, D/H)
       and transposed to (N, H, L, D/H), and K to (N, H, D/H, L), at once or by a second transposition.
    2. The scale is a number by which Q K^T is multiplied or divided; without one it is 1. It is not 0, which the operator does not
       know.
    3. The mask is added; or `Where` chooses between the scores and a constant, which is taken for "hidden" up to -1e38: the tokens
       of a row in which all are hidden then have equal weights either way, as long as scores are far from it. Its shape is
       (N or 1, H or 1, L or 1, L).
    4. The product of the softmax and V is transposed to (N, L, H, D/H) and reshaped to (N, L, D).
    5. These extents follow from the graph, constants are those that no run may replace, the floats are float32, and nothing else
       reads what is in between: where a tensor of it is watched, all stays.
"""

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.instrument.graph import ONNX, Dimension, Graph, attribute, opset, value_inputs
from models.instrument.shapes import follow_shapes
from models.instrument.splicing import element_types, splice

_HIDDEN = -1e38
_LEAST_OPSET = 8  # the first with Expand
_PREFIX = "normscope.attention."
_IN_HEADS = [0, 2, 1, 3]  # (N, L, H, D/H) <-> (N, H, L, D/H)
_OF_KEYS = ([0, 2, 3, 1], [0, 1, 3, 2])  # to (N, H, D/H, L): at once, and by the second transposition


class _Projection(NamedTuple):
    source: str
    weight: str
    bias: str
    shape: list[Dimension]  # in heads, as far as it is known: (N, L, H, D/H)
    width: int  # D

    def is_like(self, other: "_Projection") -> bool:
        return self.source == other.source and self.shape == other.shape


class _Mask(NamedTuple):
    """What is added to the scores; or, with `values`, what chooses between them: the first where it is true."""

    tensor: str
    values: tuple[float, ...] = ()


class _SelfAttention(NamedTuple):
    projections: tuple[_Projection, _Projection, _Projection]
    scale: float
    mask: _Mask | None
    output: str  # (N, L, D)


def fuse_attention(model: onnx.ModelProto) -> None:
    """Applies the rules to a model, in place."""
    if opset(model) < _LEAST_OPSET or not any(_is(node, "Softmax") for node in model.graph.node):
        return
    inferred = follow_shapes(model)
    finder = _Finder(inferred)
    found = {each.output: each for node in inferred.graph.node if _is(node, "Softmax") and (each := finder.find(node)) is not None}
    if not found:
        return
    made = {node.output[0]: node for node in model.graph.node if node.output}
    masks: dict[_Mask, str] = {}
    new: dict[str, list[onnx.NodeProto]] = {}
    for output in [name for name in made if name in found]:  # in their order, for the first makes the mask
        each = found[output]
        made[output].output[0] = unread = f"{_PREFIX}{output}.unread"
        nodes = new.setdefault(unread, [])
        if each.mask is not None and each.mask not in masks:
            masks[each.mask] = f"{_PREFIX}{output}.mask"
            nodes += _mask(model, each.mask, each.projections[0].source, masks[each.mask])
        nodes += _attention(each, masks[each.mask] if each.mask is not None else "")
    splice(model, new)
    _remove_unread(model)
    if all(entry.domain != "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _is(node: onnx.NodeProto, *operators: str) -> bool:
    """Whether it is one of these operators, and no function of the model with that name."""
    return node.op_type in operators and node.domain in ONNX


class _Finder:
    """Looks for what the rules describe around a Softmax; every method gives None for anything else."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph, self._types = Graph(model), element_types(model)
        self._outputs = {value.name for value in model.graph.output}

    def find(self, softmax: onnx.NodeProto) -> _SelfAttention | None:
        """The self-attention with this softmax."""
        weighted, masked = self._reader(softmax.output[0], "MatMul"), self._masked(softmax.input[0])
        output = self._joined(weighted.output[0]) if weighted is not None else None
        if weighted is None or output is None or masked is None or attribute(softmax, "axis") not in (-1, 3):
            return None
        product, scale, mask = masked
        query, key = self._projection(product.input[0], _IN_HEADS), self._keys(product.input[1])
        value = self._projection(weighted.input[1], _IN_HEADS)
        if query is None or key is None or value is None or not query.is_like(key) or not query.is_like(value):
            return None
        found = _SelfAttention((query, key, value), scale, mask, output)
        return found if self._has_extents(found) else None

    def _joined(self, weighted: str) -> str | None:
        """Rule 4."""
        joined = self._reader(weighted, "Transpose")
        if joined is None or attribute(joined, "perm") != _IN_HEADS:
            return None
        reshape = self._reader(joined.output[0], "Reshape")
        return reshape.output[0] if reshape is not None else None

    def _has_extents(self, found: _SelfAttention) -> bool:
        """Rule 5, and those of the mask."""
        query = found.projections[0]
        batch, length, heads, _ = query.shape
        if not isinstance(heads, int) or batch is None or length is None:
            return False
        if self._graph.shape(found.output) != [batch, length, query.width]:
            return False
        source = self._graph.shape(query.source)
        if source is None or len(source) != len(query.shape) - 1 or (source[0] != batch and source[1] != length):
            return False  # with as many numbers in all, one of both extents tells the other
        if found.mask is None:
            return True
        extents = self._graph.shape(found.mask.tensor)
        if extents is None or len(extents) != len(query.shape) or extents[-1] != length:
            return False
        return all(extent in (1, most) for extent, most in zip(extents, (batch, heads, length, length), strict=True))

    def _masked(self, scores: str) -> tuple[onnx.NodeProto, float, _Mask | None] | None:
        """The product of Q and K^T, the scale, and the mask."""
        node = self._maker(scores, "Where", "Add")
        if node is None:
            scaled = self._scaled(scores)
            return None if scaled is None else (*scaled, None)
        operands = list(node.input[-2:])
        for i, operand in enumerate(operands):
            scaled, other = self._scaled(operand), operands[1 - i]
            if scaled is None:
                continue
            if node.op_type == "Add":
                return *scaled, _Mask(other)
            hidden = self._number(other)
            if hidden is None or hidden > _HIDDEN:
                return None
            return *scaled, _Mask(node.input[0], (0.0, hidden) if i == 0 else (hidden, 0.0))
        return None

    def _scaled(self, tensor: str) -> tuple[onnx.NodeProto, float] | None:
        node = self._maker(tensor, "Mul", "Div", "MatMul")
        if node is None or node.op_type == "MatMul":
            return None if node is None else (node, 1.0)
        for i in (0, 1) if node.op_type == "Mul" else (0,):
            product, number = self._maker(node.input[i], "MatMul"), self._number(node.input[1 - i])
            if product is None or not number:
                continue
            scale = number if node.op_type == "Mul" else 1 / number
            return (product, scale) if scale and np.isfinite(scale) else None
        return None

    def _keys(self, tensor: str) -> _Projection | None:
        at_once, second = _OF_KEYS
        node = self._maker(tensor, "Transpose")
        if node is not None and attribute(node, "perm") == second:
            return self._projection(node.input[0], _IN_HEADS)
        return self._projection(tensor, at_once)

    def _projection(self, tensor: str, order: list[int]) -> _Projection | None:
        transpose = self._maker(tensor, "Transpose")
        reshape = self._maker(transpose.input[0], "Reshape") if transpose is not None else None
        add = self._maker(reshape.input[0], "Add") if reshape is not None else None
        if transpose is None or reshape is None or add is None or attribute(transpose, "perm") != order:
            return None
        shape = self._graph.shape(reshape.output[0])
        for product, bias in (add.input, reversed(add.input)):
            matmul = self._maker(product, "MatMul")
            if matmul is None or shape is None or len(shape) != len(order):
                continue
            source, weight = matmul.input
            width = self._width(weight)
            if width is None or self._graph.shape(bias) != [width] or not self._is_stored(bias):
                continue
            if self._types.get(source) == TensorProto.FLOAT:
                return _Projection(source, weight, bias, shape, width)
        return None

    def _width(self, weight: str) -> int | None:
        """D of a constant (D, D)."""
        shape = self._graph.shape(weight)
        if shape is None or len(shape) != 2 or shape[0] != shape[1] or not self._is_stored(weight):
            return None
        return shape[0] if isinstance(shape[0], int) else None

    def _is_stored(self, tensor: str) -> bool:
        """Whether it is a constant of the file, perhaps transposed; what is made of integers ONNX Runtime looks for itself."""
        node = self._graph.producer(tensor)
        if node is None or _is(node, "Constant"):
            return self._graph.is_constant(tensor)
        return _is(node, "Identity", "Transpose") and self._is_stored(node.input[0])

    def _number(self, tensor: str) -> float | None:
        value = self._graph.constant(tensor)
        return float(np.float32(value.item())) if value is not None and value.size == 1 else None

    def _maker(self, tensor: str, *operators: str) -> onnx.NodeProto | None:
        """The node of one of the operators that makes a tensor for one reader alone."""
        node = self._graph.producer(tensor)
        if node is None or not self._is_read_once(tensor):
            return None
        if _is(node, "Identity"):  # left over from dropout
            return self._maker(node.input[0], *operators)
        return node if _is(node, *operators) else None

    def _reader(self, tensor: str, operator: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor, if it is of the operator."""
        if not self._is_read_once(tensor):
            return None
        (node,) = self._graph.readers(tensor)
        if _is(node, "Identity"):
            return self._reader(node.output[0], operator)
        return node if _is(node, operator) else None

    def _is_read_once(self, tensor: str) -> bool:
        return len(self._graph.readers(tensor)) == 1 and tensor not in self._outputs


def _attention(found: _SelfAttention, mask: str) -> list[onnx.NodeProto]:
    """Constants are joined in the graph: ONNX Runtime does it once, when it loads them."""
    query = found.projections[0]
    weight, bias = f"{_PREFIX}{found.output}.weight", f"{_PREFIX}{found.output}.bias"
    return [
        helper.make_node("Concat", [each.weight for each in found.projections], [weight], axis=1),
        helper.make_node("Concat", [each.bias for each in found.projections], [bias], axis=0),
        helper.make_node(
            "Attention", [query.source, weight, bias, "", "", mask] if mask else [query.source, weight, bias], [found.output],
            domain="com.microsoft", num_heads=query.shape[2], scale=found.scale,
        ),
    ]  # fmt: skip


def _mask(model: onnx.ModelProto, mask: _Mask, source: str, name: str) -> list[onnx.NodeProto]:
    """What is added to the scores of a source (N, L, D), with all of L x L, as the operator wants it."""
    added, nodes = mask.tensor, []
    if mask.values:
        added, values = f"{name}.added", [f"{name}.true", f"{name}.false"]
        nodes.append(helper.make_node("Where", [mask.tensor, *values], [added]))
        for value, number in zip(values, mask.values, strict=True):
            model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), value))
    axis, shape, length, square = (f"{name}.{part}" for part in ("axis", "shape", "length", "square"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), axis))
    return [
        *nodes,
        helper.make_node("Shape", [source], [shape]),
        helper.make_node("Gather", [shape, axis], [length]),
        helper.make_node("Concat", [length, length], [square], axis=0),
        helper.make_node("Expand", [added, square], [name]),
    ]


def _remove_unread(model: onnx.ModelProto) -> None:
    """Nodes that no output depends on."""
    read = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if read & set(node.output):
            read |= {*node.input, *value_inputs(node)} - {""}  # the second for subgraphs, the first for all inputs of CastLike
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
