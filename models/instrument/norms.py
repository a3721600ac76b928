"""Finds the normalizations of a graph: an operator table in, one `Norm` for each node out.

Rules:
    1. BatchNormalization, LayerNormalization, GroupNormalization, InstanceNormalization, RMSNormalization and ONNX Runtime's
       SimplifiedLayerNormalization, which is the same, are normalizations; gamma, beta and epsilon are theirs.
    2. The channel axis is 1, except for layer and RMS normalizations, where it is the last axis.
    3. A normalization folded into a convolution leaves no node and is not guessed.
    4. BatchNormalization in its training form, with `training_mode` or the moments as further outputs, normalizes by the batch, not
       by constants of each channel: it is left out.
    5. ONNX Runtime's SkipLayerNormalization and SkipSimplifiedLayerNormalization normalize the sum that is their fourth output.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from models.instrument.graph import Graph, attribute
from models.instrument.naming import module_path
from models.instrument.skip_norms import BIAS, SUM

DEFAULT_EPSILON = 1e-5  # of the operators of ONNX, by its specification
_SKIP_EPSILON = 1e-12  # of those of ONNX Runtime, by its documentation
NormKind = Literal["batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"]


@dataclass(frozen=True)
class Operator:
    """What an operator normalizes, and where among its inputs gamma and beta are."""

    kind: NormKind
    last_axis: bool
    gamma: int
    beta: int | None
    epsilon: float = DEFAULT_EPSILON


OPERATORS = {
    "BatchNormalization": Operator("batch_norm", last_axis=False, gamma=1, beta=2),
    "LayerNormalization": Operator("layer_norm", last_axis=True, gamma=1, beta=2),
    "GroupNormalization": Operator("group_norm", last_axis=False, gamma=1, beta=2),
    "InstanceNormalization": Operator("instance_norm", last_axis=False, gamma=1, beta=2),
    "RMSNormalization": Operator("rms_norm", last_axis=True, gamma=1, beta=None),
    "SimplifiedLayerNormalization": Operator("rms_norm", last_axis=True, gamma=1, beta=None),
    "SkipLayerNormalization": Operator("layer_norm", last_axis=True, gamma=2, beta=3, epsilon=_SKIP_EPSILON),
    "SkipSimplifiedLayerNormalization": Operator("rms_norm", last_axis=True, gamma=2, beta=None, epsilon=_SKIP_EPSILON),
}


@dataclass(frozen=True)
class Norm:
    """One normalization: its nodes, of which the last makes its output, its name, the tensors on both sides and its parameters.

    Parameters are None where the graph computes them, or has none.
    """

    nodes: tuple[onnx.NodeProto, ...]
    name: str
    kind: NormKind
    before: str
    after: str
    last_axis: bool
    epsilon: float
    gamma: NDArray[np.float64] | None
    beta: NDArray[np.float64] | None


def find_norms(graph: Graph) -> list[Norm]:
    """All normalizations, in the order of execution."""
    found = (node for node in graph.nodes if node.op_type in OPERATORS and not is_in_training(node))
    return [_norm(graph, node, OPERATORS[node.op_type]) for node in found]


def is_in_training(node: onnx.NodeProto) -> bool:
    """Rule 4."""
    return node.op_type == "BatchNormalization" and (bool(attribute(node, "training_mode", 0)) or any(node.output[1:]))


def _norm(graph: Graph, node: onnx.NodeProto, operator: Operator) -> Norm:
    epsilon = attribute(node, "epsilon", operator.epsilon)
    assert isinstance(epsilon, float)  # by the operator's schema
    return Norm(
        nodes=(node,),
        name=module_path([node]),
        kind=operator.kind,
        before=node.output[SUM] if node.op_type in BIAS else node.input[0],
        after=node.output[0],
        last_axis=operator.last_axis,
        epsilon=epsilon,
        gamma=_parameter(graph, node, operator.gamma),
        beta=None if operator.beta is None else _parameter(graph, node, operator.beta),
    )


def _parameter(graph: Graph, node: onnx.NodeProto, position: int) -> NDArray[np.float64] | None:
    if position >= len(node.input) or not node.input[position]:
        return None
    value = graph.constant(node.input[position])
    return None if value is None else value.astype(np.float64)
