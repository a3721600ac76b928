"""Finds the residual adds y = F(x) + x of a graph.

Rules, for an Add, or a Sum of two, of tensors that both depend on the input (so no bias):
    1. Walk back from one side through operators that only pass values on (Reshape, Transpose, Slice, Cast, Dropout, Pad, ...; be it
       with 8 bits of them): the first tensor from which the other side is also reached is the fork, and this side is an identity.
    2. Otherwise walk back through at most one Conv, MatMul or Gemm with its bias, norm and pooling: this side is a projection. A
       norm may be written out with constants, as the frozen ones of detectors are: products and sums.
    3. The other side is F. On its way from the fork lies at least one weighted operator (Conv, MatMul, Gemm, attention),
       which rules out the tanh form of GELU (x + 0.0447 x^3) and rotary embeddings.
    4. No Resize or transposed convolution lies on that way: lateral sums of feature pyramids join two scales, not a residual.
    5. Where both sides qualify, the identity wins over the projection, then the shorter walk.
    6. Shape and Size end a walk: they carry extents, not activations, so attention masks built from them share no fork.
    7. A sum that goes into a Softmax alone, be it through further sums, is made of attention scores: what is added is a mask or
       a bias, even where an earlier layer has used the same, which makes it an ancestor of the scores.
    8. ONNX Runtime's SkipLayerNormalization and SkipSimplifiedLayerNormalization add their first two inputs, and have the sum as
       fourth output. All other rules hold for them too.
    9. F belongs to its sum: a tensor that others read too is none. So the position embeddings that a detector adds to its features
       anew in each layer are no identities, although those features depend on them through the layers before. Beside a projection
       the same holds for all that lies between the fork and F: projections of features and of positions are sums of another kind.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from models.instrument.graph import Graph, value_inputs
from models.instrument.skip_norms import BIAS, SUM

SUMS = ("Add", "Sum")
_SIDES = 2
_PASSES = {
    "Reshape", "Transpose", "Slice", "Cast", "Dropout", "Pad", "Identity", "Flatten", "Squeeze", "Unsqueeze",
    "CastLike", "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip
_WEIGHTED = {
    "Conv", "MatMul", "Gemm", "Attention", "MultiHeadAttention", "GroupQueryAttention", "Einsum",
    "FusedConv", "FusedMatMul", "FusedGemm", "MatMulNBits",
}  # fmt: skip
_PROJECTION_COMPANIONS = {
    "BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization",
    "SimplifiedLayerNormalization", "AveragePool", "MaxPool",
}  # fmt: skip
_AFFINE = {"Add", "Sub", "Mul", "Div"}
_RESAMPLES = {"Resize", "Upsample", "ConvTranspose"}
_EXTENTS = {"Shape", "Size"}


@dataclass(frozen=True)
class ResidualAdd:
    """One residual add: `identity` is x (or its projection), `residual` is F(x), `sum` is what the Add makes of them."""

    node: onnx.NodeProto
    identity: str
    residual: str
    sum: str


def find_residual_adds(graph: Graph) -> list[ResidualAdd]:
    """All residual adds, in the order of execution."""
    return [add for node in graph.nodes if _adds_two(node) and (add := _residual_add(graph, node))]


def _adds_two(node: onnx.NodeProto) -> bool:
    return (node.op_type in SUMS and len(node.input) == _SIDES) or node.op_type in BIAS


def _residual_add(graph: Graph, node: onnx.NodeProto) -> ResidualAdd | None:
    sides = node.input[:_SIDES]
    total = node.output[SUM] if node.op_type in BIAS else node.output[0]
    if any(graph.is_constant(name) for name in sides) or _makes_scores(graph, total):
        return None
    candidates = []
    for identity, residual in (sides, reversed(sides)):
        if not _are_read_by(graph, [residual], [node]):
            continue
        ancestors = _ancestors(graph, residual)
        for projected in (False, True):
            steps = _walk_to_fork(graph, identity, ancestors, projected)
            if steps is not None:
                candidates.append((projected, steps[1], identity, residual, steps[0]))
                break
    for projected, _, identity, residual, fork in sorted(candidates, key=lambda c: c[:2]):
        if _is_residual_branch(graph, residual, fork, alone=projected):
            return ResidualAdd(node, identity, residual, total)
    return None


def _makes_scores(graph: Graph, total: str) -> bool:
    """Rule 7."""
    readers = graph.readers(total)
    while len(readers) == 1 and readers[0].op_type in _PASSES | {"Add"}:
        readers = graph.readers(readers[0].output[0])
    return len(readers) == 1 and readers[0].op_type == "Softmax"


def _ancestors(graph: Graph, tensor: str) -> set[str]:
    """The tensor itself and every tensor its values are computed from."""
    found = {tensor}
    pending = [tensor]
    while pending:
        for name in _sources(graph, pending.pop()):
            if name not in found:
                found.add(name)
                pending.append(name)
    return found


def _sources(graph: Graph, tensor: str) -> Iterator[str]:
    node = graph.producer(tensor)
    if node is not None and node.op_type not in _EXTENTS:
        yield from (name for name in value_inputs(node) if not graph.is_constant(name))


def _walk_to_fork(graph: Graph, tensor: str, ancestors: set[str], projected: bool) -> tuple[str, int] | None:
    """(fork, number of steps) of a walk along values only; None if it ends before a tensor in `ancestors`."""
    steps, weighted = 0, 0
    while tensor not in ancestors:
        node = graph.producer(tensor)
        if node is None:
            return None
        if node.op_type not in _PASSES:
            if not projected:
                return None
            is_affine = node.op_type in _AFFINE and any(graph.is_constant(name) for name in node.input)
            weighted += node.op_type in _WEIGHTED
            if weighted > 1 or not (is_affine or node.op_type in _WEIGHTED | _PROJECTION_COMPANIONS):
                return None
        data = [name for name in value_inputs(node) if not graph.is_constant(name)]
        if not data:
            return None
        if node.op_type in _WEIGHTED and len(data) != 1:  # a product of two activations projects nothing
            return None
        tensor = data[0]
        steps += 1
    return tensor, steps


def _is_residual_branch(graph: Graph, residual: str, fork: str, *, alone: bool) -> bool:
    """Rules 3, 4 and 9: what lies between the fork and the add is weighted, changes no scale and, if `alone`, serves it alone."""
    from_fork = _between(graph, residual, fork)
    operators = {node.op_type for node in from_fork}
    if not operators & _WEIGHTED or operators & _RESAMPLES:
        return False
    if not alone:
        return True
    made = [name for node in from_fork for name in node.output if name and name != residual]
    return _are_read_by(graph, made, from_fork)


def _are_read_by(graph: Graph, tensors: Sequence[str], nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether these nodes are all that reads the values of the tensors."""
    known = {id(node) for node in nodes}
    others = ((tensor, reader) for tensor in tensors for reader in graph.readers(tensor) if id(reader) not in known)
    return all(reader.op_type in _EXTENTS or tensor not in value_inputs(reader) for tensor, reader in others)


def _between(graph: Graph, tensor: str, fork: str) -> list[onnx.NodeProto]:
    """The nodes on all ways from `fork` to `tensor`."""
    reaches: dict[str, bool] = {fork: True}

    # depth first with an explicit stack: deep networks exceed Python's recursion limit
    stack = [tensor]
    while stack:
        name = stack[-1]
        if name in reaches:
            stack.pop()
            continue
        sources = list(_sources(graph, name))
        missing = [source for source in sources if source not in reaches]
        if missing:
            stack.extend(missing)
        else:
            reaches[name] = any(reaches[source] for source in sources)
            stack.pop()
    return [node for name, reached in reaches.items() if reached and name != fork and (node := graph.producer(name)) is not None]
