"""An index over an ONNX graph: who makes a tensor, who reads it, what is constant, what shape it has. Knows no norms or adds."""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

_GRAPH_TYPES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_MAX_COMPUTED = 1 << 16  # elements of an operand that is worth computing with: axes, exponents, parameters of a norm

ONNX = ("", "ai.onnx")
"""The names of the domain of ONNX's own operators."""
Dimension = int | str | None
"""One extent: a number, the name of a dynamic dimension, or None where it is unknown."""


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """The value of a node's attribute, or `default`."""
    for candidate in node.attribute:
        if candidate.name == name:
            return onnx.helper.get_attribute_value(candidate)
    return default


def opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators in a model; 0 where it has none."""
    return next((each.version for each in model.opset_import if each.domain in ONNX), 0)


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside a node: branches of If, bodies of Loop and Scan."""
    held = [candidate for candidate in node.attribute if candidate.type in _GRAPH_TYPES]
    return [graph for candidate in held for graph in ([candidate.g] if candidate.HasField("g") else candidate.graphs)]


def value_inputs(node: onnx.NodeProto) -> list[str]:
    """What a node computes values from: its inputs, and the tensors from outside that its subgraphs read.

    Of CastLike only the first input: the other merely tells a type.
    """
    inputs = [name for name in (node.input[:1] if node.op_type == "CastLike" else node.input) if name]
    return [*inputs, *(name for graph in subgraphs(node) for name in _captured(graph))]


def _captured(graph: onnx.GraphProto) -> list[str]:
    """The tensors that a subgraph, or one inside it, reads and does not make: those of the graphs around it."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    own |= {name for node in graph.node for name in node.output}
    read = [name for node in graph.node for name in value_inputs(node)] + [value.name for value in graph.output]
    return [name for name in dict.fromkeys(read) if name not in own]


class Graph:
    """Read-only lookups on the main graph of a model.

    Subgraphs (If, Loop) are not entered, but what they read from outside counts as read by their node.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: Sequence[onnx.NodeProto] = list(model.graph.node)
        self._positions = {name: i for i, node in enumerate(self.nodes) for name in node.output}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys((*node.input, *value_inputs(node))):
                self._readers.setdefault(name, []).append(node)
        self._opsets = {opset.domain: opset.version for opset in model.opset_import}
        self._constant: dict[str, bool] = {}
        values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
        self._shapes: dict[str, list[Dimension] | None] = {name: list(tensor.dims) for name, tensor in self._initializers.items()}
        self._shapes |= {value.name: _shape(value) for value in values}

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that makes a tensor; None for inputs and initializers."""
        return self._producers.get(tensor)

    def readers(self, tensor: str) -> Sequence[onnx.NodeProto]:
        """The nodes that read a tensor, be it inside them, in the order of execution."""
        return self._readers.get(tensor, ())

    def position(self, node: onnx.NodeProto) -> int:
        """The place of a node in the order of execution."""
        return self._positions[node.output[0]]

    def shape(self, tensor: str) -> list[Dimension] | None:
        """The extents of a tensor as far as shape inference knows them; None where not even the rank is known."""
        return self._shapes.get(tensor)

    def depends(self, tensor: str, *, on: str) -> bool:
        """Whether a tensor is computed from another one."""
        pending, seen = [tensor], {tensor}
        while pending:
            node = self.producer(pending.pop())
            sources = set(value_inputs(node)) - seen if node is not None else set()
            if on in sources:
                return True
            seen |= sources
            pending += sources
        return False

    def is_constant(self, tensor: str) -> bool:
        """True if the tensor depends on no graph input: an initializer, or computed from such alone."""
        pending = [tensor]
        while pending:
            name = pending[-1]
            node = self.producer(name)
            if name in self._constant:
                pending.pop()
            elif node is None:
                self._constant[name] = name in self._initializers
            elif unknown := [source for source in value_inputs(node) if source not in self._constant]:
                pending.extend(unknown)
            else:
                self._constant[name] = all(self._constant[source] for source in value_inputs(node))
        return self._constant[tensor]

    def constant(self, tensor: str) -> NDArray[np.generic] | None:
        """The value of an initializer, or of what the graph computes from small ones alone; else None."""
        if tensor in self._initializers:
            return self._initializer(tensor)
        node = self.producer(tensor)
        if node is None or not self.is_constant(tensor):
            return None
        if node.op_type == "Constant":
            return _value(node)
        if node.op_type in ("Identity", "CastLike"):  # for a value it does not matter as which type it is stored
            return self.constant(node.input[0])
        if node.op_type == "Cast":
            source, to = self.constant(node.input[0]), attribute(node, "to")
            assert isinstance(to, int)  # the operator requires it
            return None if source is None else source.astype(onnx.helper.tensor_dtype_to_np_dtype(to))
        return self._computed(node)

    def _initializer(self, name: str) -> NDArray[np.generic] | None:
        tensor = self._initializers[name]
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # large: whoever read the model has left it in its file
            return None
        return np.asarray(numpy_helper.to_array(tensor))

    def _computed(self, node: onnx.NodeProto) -> NDArray[np.generic] | None:
        inputs = {name: self.constant(name) for name in node.input if name}
        if any(value is None or value.size > _MAX_COMPUTED for value in inputs.values()):
            return None
        from onnx.reference import ReferenceEvaluator  # slow to import, and rarely needed

        try:
            (value, *_) = ReferenceEvaluator(node, opsets=self._opsets).run(None, inputs)
        except Exception:  # an operator that the evaluator does not know, or cannot run: then the value is not known
            return None
        return np.asarray(value)


def _value(constant: onnx.NodeProto) -> NDArray[np.generic] | None:
    """The value of a Constant in any of its forms; None for text and for sparse tensors."""
    (content,) = (onnx.helper.get_attribute_value(form) for form in constant.attribute)  # exactly one, by the schema
    if isinstance(content, onnx.TensorProto):
        return np.asarray(numpy_helper.to_array(content))
    return np.asarray(content) if isinstance(content, (int, float, list)) else None


def _shape(value: onnx.ValueInfoProto) -> list[Dimension] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [_extent(dimension) for dimension in tensor.shape.dim]


def _extent(dimension: onnx.TensorShapeProto.Dimension) -> Dimension:
    if dimension.HasField("dim_value"):
        return dimension.dim_value
    name = dimension.dim_param
    return name if name and not name.startswith("unk__") else None  # shape inference numbers what it does not know
