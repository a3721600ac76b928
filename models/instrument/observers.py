"""Adds observers: a graph and what to reduce in it in, the same graph with nodes that reduce while it runs out.

No other node changes. An observer is a node of the operator `Observe` (domain `normscope`), which the service brings as a compiled
library. It reads activations where they are made, and hands out a few numbers; the activations themselves never leave the graph.

Rules, for tensors of float32 (others are converted by a Cast of their own) with their channels along axis 1 or the last:
    1. Two sides of a residual add are read by one observer, which also takes their dot product.
    2. The sum of two float32 tensors of one shape is made by the observer on the way: the graph's own Add may be fused with others.
    3. A BatchNormalization at inference is `scale * x + shift` per channel: its output follows from its input, and is not read. Not
       the other way: dividing by a small scale loses what is divided. Nor where scale * mean is so large against gamma and beta
       that the rounding of scale and shift alone, which is ONNX Runtime's own affair, would be seen. Its scale goes into the
       convolution before it where `folding.py` can do that; the observer then divides by it.
    4. Each other tensor has an observer of its own.
    5. What no rule covers (other types, other axes, an unknown rank, a mask over other than (N, L, C)) is left to the caller, who
       can make it an output of the graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.instrument.folding import fold_scale
from models.instrument.graph import Dimension, Graph
from models.instrument.shapes import infer_shapes

DOMAIN = "normscope"
SUMMARY = "normscope.summary"
"""Output float64 (N, sum over observers of 7 * rows + 3)."""
FIELDS, RELATIONS = 7, 3
"""Numbers of a row: count, mean, m2, minimum, maximum, zeros, nonfinite; and after the rows of an observer: residual_ratio, cosine,
and the number of its channels."""
COLUMNS, LISTED = "normscope.columns", "normscope.listed"
"""Inputs that are the fields of a `ChannelList`, with no extent where no channels are wanted: int64 (0) and float32 (N, 6, 0)."""
LISTED_FIELDS = 6
"""Numbers of a channel: mean, standard deviation, minimum, maximum, zeros, nonfinite."""
CHANNELS_FIRST, CHANNELS_LAST, BLOCKED = 0, 1, 2

_HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
_TOKEN_AXES = 2  # before the channels, where a mask is read as it is: (batch, length)
_LARGEST_OFFSET = 200  # the float32 rounding of which, 1e-5, is a tenth of the tolerance
_BATCH, _EXTENT = 2, 64  # stand for dynamic extents where shapes are compared


class Reduction(NamedTuple):
    """One tensor reduced in one way; several sides may ask for the same."""

    tensor: str
    channel_axis: int
    mask: str | None
    mask_axis: int = 1


class Pair(NamedTuple):
    """The sides of a residual add."""

    identity: Reduction
    residual: Reduction
    sum: Reduction


@dataclass(frozen=True)
class Observer:
    """One node: what each of its rows is, and whose dot product it takes."""

    rows: tuple[Reduction, ...]
    pair: Pair | None


@dataclass(frozen=True)
class ChannelList:
    """What K observers see of each channel, in memory that a run is given and that they fill while it lasts.

    Attributes:
        columns: int64 (K + 1); observer i fills columns[i] to columns[i + 1], with the channels of its rows one after the other.
        values: float32 (N, 6, columns[K]), contiguous.
    """

    columns: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class _Affine:
    """after = scale * tensor + shift, of the tensor that the graph holds: `source`, or where it was folded divisor * source."""

    source: Reduction
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    divisor: NDArray[np.float32] | None = None


def add_observers(model: onnx.ModelProto, reductions: Sequence[Reduction], pairs: Sequence[Pair]) -> list[Observer]:
    """Adds observers in place, as far as the rules go.

    Returns:
        The observers in the order in which their numbers lie in the output `SUMMARY`; none leaves the model unchanged.
    """
    builder = _Builder(model, reductions)
    for pair in pairs:
        builder.observe_pair(pair)
    for reduction in reductions:
        builder.observe(reduction)
    builder.finish()
    return builder.observers


def place_observers(model: onnx.ModelProto) -> None:
    """Moves every observer to where its last input is made, while it is in the cache."""
    nodes = [node for node in model.graph.node if node.domain != DOMAIN]
    made_at = {name: i for i, node in enumerate(nodes) for name in node.output}
    following: dict[int, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.domain == DOMAIN:
            last = max((made_at.get(name, -1) for name in node.input), default=-1)
            following.setdefault(last, []).append(node)
    ordered = following.get(-1, [])
    for i, node in enumerate(nodes):
        ordered += [node, *following.get(i, ())]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(copies)


class _Builder:
    def __init__(self, model: onnx.ModelProto, reductions: Sequence[Reduction]) -> None:
        self.observers: list[Observer] = []
        self._model = model
        inferred = _with_shapes(model)
        values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._graph = Graph(inferred)
        self._wanted = set(reductions)
        self._covered: set[Reduction] = set()
        found = [(after, self._find_affine(after)) for after in reductions]
        self._affine = {affine.source: (after, affine) for after, affine in found if affine}
        self._folded: dict[str, _Affine] = {}
        self._casts: dict[str, str] = {}

    def observe_pair(self, pair: Pair) -> None:
        """Rules 1 and 2."""
        identity, residual = pair.identity, pair.residual
        if not (self._is_readable(identity) and self._is_readable(residual)) or self._shape(identity) != self._shape(residual):
            return
        if None in (self._shape(identity) or [None]):
            return
        affine = self._find_affine(residual)
        made = self._graph.producer(pair.sum.tensor)
        is_plain_sum = (
            made is not None
            and made.op_type == "Add"
            and set(made.input) == {identity.tensor, residual.tensor}
            and self._types.get(pair.sum.tensor) == TensorProto.FLOAT
        )
        rows = [affine.source, residual] if affine else [residual]
        rows += [identity, pair.sum] if is_plain_sum else [identity]
        self._add(tuple(rows), affine, identity, is_plain_sum, pair)

    def observe(self, reduction: Reduction) -> None:
        """Rules 3 and 4."""
        if reduction in self._covered or not self._is_readable(reduction):
            return
        if any(reduction == after for after, _ in self._affine.values()):
            return  # follows from its source
        if reduction in self._affine:
            after, affine = self._affine[reduction]
            self._add((reduction, after), affine)
        else:
            self._add((reduction,), None)

    def finish(self) -> None:
        graph = self._model.graph
        if not self.observers:
            return
        graph.input.append(helper.make_tensor_value_info(COLUMNS, TensorProto.INT64, [None]))
        graph.input.append(helper.make_tensor_value_info(LISTED, TensorProto.FLOAT, [None, LISTED_FIELDS, None]))
        parts = [f"{DOMAIN}.{i}.summary" for i in range(len(self.observers))]
        graph.node.append(helper.make_node("Concat", parts, [SUMMARY], name=SUMMARY, axis=1))
        graph.output.append(helper.make_tensor_value_info(SUMMARY, TensorProto.DOUBLE, None))
        self._model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        place_observers(self._model)

    def _add(
        self,
        rows: tuple[Reduction, ...],
        affine: _Affine | None,
        identity: Reduction | None = None,
        is_sum: bool = False,
        pair: Pair | None = None,
    ) -> None:
        first, shape = rows[0], self._shape(rows[0])
        assert shape is not None  # else not readable
        name = f"{DOMAIN}.{len(self.observers)}"
        last = first.channel_axis % len(shape) == len(shape) - 1 and affine is None
        inputs = [
            self._float(first.tensor),
            "",
            "",
            self._float(identity.tensor) if identity else "",
            self._mask(first.mask),
            COLUMNS,
            LISTED,
        ]
        if affine:
            affine = self._fold(affine, rows[1])
            inputs[1:3] = self._constant(f"{name}.scale", affine.scale), self._constant(f"{name}.shift", affine.shift)
            if affine.divisor is not None:
                inputs.append(self._constant(f"{name}.divisor", affine.divisor))
        attributes: dict[str, Any] = {
            "layout": CHANNELS_LAST if last else CHANNELS_FIRST,
            "block": 0,
            "channels": 0,
            "sum": int(is_sum),
            "number": len(self.observers),
        }
        node = helper.make_node("Observe", inputs, [f"{name}.summary"], name=name, domain=DOMAIN, **attributes)
        self._model.graph.node.append(node)
        self.observers.append(Observer(rows, pair))
        self._covered |= set(rows)

    def _constant(self, name: str, value: NDArray[np.float32]) -> str:
        self._model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _fold(self, affine: _Affine, after: Reduction) -> _Affine:
        """With the scale in the weights where the rules of `folding.py` allow it and nobody else watches the source."""
        tensor = affine.source.tensor
        if tensor not in self._folded:
            norm = self._graph.producer(after.tensor)
            alone = sum(each.tensor == tensor for each in self._wanted) == 1
            divisor = fold_scale(self._model, self._graph, norm, affine.shift) if norm is not None and alone else None
            ones = np.ones_like(affine.scale)
            self._folded[tensor] = affine if divisor is None else replace(affine, scale=ones, divisor=divisor)
        return self._folded[tensor]

    def _shape(self, reduction: Reduction) -> list[Dimension] | None:
        return self._graph.shape(reduction.tensor)

    def _is_readable(self, reduction: Reduction) -> bool:
        shape, kind = self._shape(reduction), self._types.get(reduction.tensor)
        if not shape or len(shape) < 2 or not (kind == TensorProto.FLOAT or kind in _HALF):
            return False
        axis = reduction.channel_axis % len(shape)
        if reduction.mask is not None:
            return axis == len(shape) - 1 == _TOKEN_AXES and reduction.mask_axis == 1
        return axis in (1, len(shape) - 1)

    def _find_affine(self, after: Reduction) -> _Affine | None:
        """Scale and shift of the BatchNormalization that makes `after`, if it does and its input is reduced alike."""
        node = self._graph.producer(after.tensor)
        if node is None or node.op_type != "BatchNormalization" or len(node.output) > 1 or after.mask:
            return None
        source = Reduction(node.input[0], after.channel_axis, None)
        parameters = [self._graph.constant(name) for name in node.input[1:5]]
        is_float = self._types.get(after.tensor) == self._types.get(source.tensor) == TensorProto.FLOAT
        if source not in self._wanted or after.channel_axis != 1 or not is_float or any(p is None for p in parameters):
            return None
        gamma, beta, mean, var = (np.asarray(parameter, np.float64) for parameter in parameters)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        scale = gamma / np.sqrt(var + epsilon)
        if np.abs(mean * scale).max() > _LARGEST_OFFSET * np.sqrt((gamma**2 + beta**2).mean()):
            return None
        return _Affine(source, scale.astype(np.float32), (beta - mean * scale).astype(np.float32))

    def _float(self, tensor: str) -> str:
        return tensor if self._types.get(tensor) == TensorProto.FLOAT else self._cast(tensor, TensorProto.FLOAT)

    def _mask(self, mask: str | None) -> str:
        if mask is None:
            return ""
        return mask if self._types.get(mask) == TensorProto.INT64 else self._cast(mask, TensorProto.INT64)

    def _cast(self, tensor: str, to: int) -> str:
        if tensor not in self._casts:
            self._casts[tensor] = f"{DOMAIN}.cast.{tensor}"
            self._model.graph.node.append(helper.make_node("Cast", [tensor], [self._casts[tensor]], to=to))
        return self._casts[tensor]


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shapes of its tensors, dynamic extents replaced by some number: enough to know which shapes are equal."""
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input]
    extents = {extent.dim_param: _EXTENT for shape in shapes for extent in shape if extent.dim_param}
    extents |= {shape[0].dim_param: _BATCH for shape in shapes if shape and shape[0].dim_param}
    try:
        return infer_shapes(model, extents)
    except onnx.shape_inference.InferenceError:  # the graph fits other extents only
        return infer_shapes(model, {})
