"""The probes of a graph: every normalization and residual add, in the order of execution, with the tensors of its sides."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from models.instrument.decomposed_norms import find_decomposed_norms
from models.instrument.graph import Dimension, Graph
from models.instrument.naming import sum_name
from models.instrument.norms import Norm, NormKind, find_norms
from models.instrument.residual_adds import find_residual_adds
from models.instrument.shapes import infer_shapes
from models.instrument.skip_norms import BIAS, expose_sums

ProbeKind = NormKind | Literal["residual_add"]


@dataclass(frozen=True)
class Probe:
    """One place in the graph.

    Attributes:
        layer: the name of the node or the path of its module, unique in the graph.
        kind: which normalization, or `residual_add`.
        tensors: side -> name of the tensor; `before`, `after`, or `identity`, `residual`, `sum`.
        shape: extents of these tensors, the batch first; None where shape inference does not know.
        channel_axis: the axis of gamma and beta; for an add that of the nearest norm in the order of execution.
        epsilon, gamma, beta: those of a normalization; None for an add and where the graph computes them.
    """

    layer: str
    kind: ProbeKind
    tensors: dict[str, str]
    shape: list[Dimension] | None
    channel_axis: int
    epsilon: float | None = None
    gamma: NDArray[np.float64] | None = None
    beta: NDArray[np.float64] | None = None


def find_probes(model: onnx.ModelProto, extents: Mapping[str, int] | None = None) -> list[Probe]:
    """Every normalization and residual add of the model.

    Args:
        model: any ONNX model; it is not changed. Where it holds Skip operators, the tensors are those that `expose_sums` makes.
        extents: known values of dynamic input dimensions, by name, for the shapes that are reported.
    """
    graph = Graph(infer_shapes(_with_sums(model), extents or {}))
    norms = all_norms(graph)
    entries: list[tuple[int, Probe]] = [(graph.position(norm.nodes[-1]), _norm_probe(graph, norm)) for norm in norms]
    for add in find_residual_adds(graph):
        position = graph.position(add.node)
        nearest = min(norms, key=lambda norm: abs(graph.position(norm.nodes[-1]) - position), default=None)
        shape = graph.shape(add.sum)
        probe = Probe(
            layer=sum_name(add.node),
            kind="residual_add",
            tensors={"identity": add.identity, "residual": add.residual, "sum": add.sum},
            shape=shape,
            channel_axis=_channel_axis(shape, last_axis=nearest is not None and nearest.last_axis),
        )
        entries.append((position, probe))
    entries.sort(key=lambda entry: (entry[0], entry[1].kind != "residual_add"))  # a Skip operator adds before it normalizes
    return _with_unique_names([probe for _, probe in entries])


def _with_sums(model: onnx.ModelProto) -> onnx.ModelProto:
    if not any(node.op_type in BIAS for node in model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    expose_sums(copy)
    return copy


def all_norms(graph: Graph) -> list[Norm]:
    """The normalizations of a graph, as operators or written out; of the model with inferred shapes."""
    written_out = find_decomposed_norms(graph)
    parts = {node.output[0] for norm in written_out for node in norm.nodes}
    return [*(norm for norm in find_norms(graph) if norm.after not in parts), *written_out]


def _with_unique_names(probes: list[Probe]) -> list[Probe]:
    """Modules that are called several times, and nodes of the same name, are numbered from the second on: `norm`, `norm.2`."""
    counts = Counter[str]()
    unique = []
    for probe in probes:
        counts[probe.layer] += 1
        count = counts[probe.layer]
        unique.append(probe if count == 1 else replace(probe, layer=f"{probe.layer}.{count}"))
    return unique


def _norm_probe(graph: Graph, norm: Norm) -> Probe:
    shape = graph.shape(norm.before)
    return Probe(
        layer=norm.name,
        kind=norm.kind,
        tensors={"before": norm.before, "after": norm.after},
        shape=shape,
        channel_axis=_channel_axis(shape, norm.last_axis),
        epsilon=norm.epsilon,
        gamma=norm.gamma,
        beta=norm.beta,
    )


def _channel_axis(shape: list[Dimension] | None, last_axis: bool) -> int:
    if not last_axis:
        return 1
    return len(shape) - 1 if shape else -1
