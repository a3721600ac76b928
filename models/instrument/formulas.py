"""What each normalization of a graph subtracts and divides by: its nodes in, the axes, groups or running moments out.

Every normalization is (x - mu) / sqrt(sigma^2 + epsilon) * gamma + beta; a formula tells over which elements mu and sigma^2 are
taken.

Rules:
    1. BatchNormalization takes mean and variance of each channel from constants of the graph.
    2. LayerNormalization and RMSNormalization take them over the axes from `axis` to the last; written out, over those of
       ReduceMean. An RMS norm has mu = 0.
    3. GroupNormalization takes them over each group of channels and all axes after; written out, the groups are what
       InstanceNormalization sees as channels. InstanceNormalization is a group norm whose groups are single channels.
    4. Where the graph computes what a formula needs, there is none.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from models.instrument.decomposed_norms import reduced_axes
from models.instrument.graph import Graph, attribute
from models.instrument.norms import Norm
from models.instrument.probes import all_norms


@dataclass(frozen=True)
class Formula:
    """mu and sigma^2 of a normalization of x (N, ...).

    Attributes:
        epsilon: added to sigma^2.
        axes: over which mu and sigma^2 are taken, counted from the end where negative; empty for the others.
        groups: into which the channels, axis 1, are divided; 0 for the others.
        centred: whether mu is subtracted; an RMS norm divides by the root of the mean square instead.
        mean, var: float64 (C,), the running moments of a batch norm, for the channels along axis 1.
    """

    epsilon: float
    axes: tuple[int, ...] = ()
    groups: int = 0
    centred: bool = True
    mean: NDArray[np.float64] | None = None
    var: NDArray[np.float64] | None = None


def find_formulas(model: onnx.ModelProto, sides: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Formula]:
    """The formulas of the normalizations between these tensors, (before, after) each; those without one are left out.

    Args:
        model: with inferred shapes.
        sides: as `find_probes` names them.
    """
    graph = Graph(model)
    norms = {(norm.before, norm.after): norm for norm in all_norms(graph)}
    found = {pair: _formula(graph, norms[pair]) for pair in sides if pair in norms}
    return {pair: formula for pair, formula in found.items() if formula is not None}


def _formula(graph: Graph, norm: Norm) -> Formula | None:
    if norm.kind == "batch_norm":
        return _of_batch_norm(graph, norm)
    if norm.kind in ("layer_norm", "rms_norm"):
        axes = _normalized_axes(graph, norm)
        return Formula(norm.epsilon, axes=axes, centred=norm.kind == "layer_norm") if axes else None
    groups = _groups(graph, norm)
    return Formula(norm.epsilon, groups=groups) if groups else None


def _of_batch_norm(graph: Graph, norm: Norm) -> Formula | None:
    """Rule 1."""
    mean, var = (graph.constant(name) for name in norm.nodes[0].input[3:5])
    if mean is None or var is None:
        return None
    return Formula(norm.epsilon, mean=mean.astype(np.float64), var=var.astype(np.float64))


def _normalized_axes(graph: Graph, norm: Norm) -> tuple[int, ...] | None:
    """Rule 2."""
    node = norm.nodes[0]
    if node.op_type == "ReduceMean":
        return reduced_axes(graph, node)
    first = attribute(node, "axis", -1)
    assert isinstance(first, int)  # by the operator's schema
    if first < 0:
        return tuple(range(first, 0))
    shape = graph.shape(norm.before)
    return None if shape is None else tuple(range(first, len(shape)))


def _groups(graph: Graph, norm: Norm) -> int | None:
    """Rule 3."""
    node = next(node for node in norm.nodes if node.op_type != "Reshape")
    if node.op_type == "GroupNormalization":
        groups = attribute(node, "num_groups")
        assert isinstance(groups, int)  # by the operator's schema
        return groups
    scale = graph.constant(node.input[1])  # of InstanceNormalization, one number for each channel that it sees
    return None if scale is None else scale.size
