"""Opens gamma and beta of normalizations: a graph in, the same graph whose gammas and betas a run may replace out.

Rules:
    1. Where gamma or beta is a constant, the operator that applies it reads a new graph input of float32 instead. The input has the
       constant as its initializer, so that it may be left out of a run: nothing changes then.
    2. Normalizations that share a constant get an input each.
    3. Activations of another type read the input through a Cast.
    4. What the graph computes, and a gamma or beta that a normalization does not have, stays as it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.instrument.graph import Graph
from models.instrument.norms import OPERATORS, Norm
from models.instrument.probes import all_norms
from models.instrument.splicing import element_types, splice

_NORMALIZING = 2  # nodes of a norm that is written out, before those that apply gamma and beta
ParameterName = Literal["gamma", "beta"]


@dataclass(frozen=True)
class Parameter:
    """An input of the graph.

    Attributes:
        input: its name.
        value: float32, what it is where a run does not say otherwise.
        tensor: what the normalization reads, of the type of its activations.
    """

    input: str
    value: NDArray[np.float32]
    tensor: str


def open_parameters(
    model: onnx.ModelProto, sides: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], dict[ParameterName, Parameter]]:
    """Opens, in place, the normalizations between these tensors, (before, after) each.

    Args:
        model: with inferred shapes.
        sides: as `find_probes` names them.
    """
    model.ir_version = max(model.ir_version, 4)  # from here on an input may have a default
    graph, types = Graph(model), element_types(model)
    norms = {(norm.before, norm.after): norm for norm in all_norms(graph)}
    opened: dict[tuple[str, str], dict[ParameterName, Parameter]] = {}
    casts = []
    for i, pair in enumerate(sides):
        opened[pair] = {}
        for name, (node, position) in _readers(graph, norms[pair]).items() if pair in norms else ():
            constant = node.input[position]
            value = graph.constant(constant)
            if value is None:
                continue
            tensor = source = f"normscope.{i}.{name}"
            default = value.astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(default, source))
            model.graph.input.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, default.shape))
            kind = types.get(constant) or types.get(pair[0], TensorProto.FLOAT)
            if kind != TensorProto.FLOAT:
                tensor = f"{source}.cast"
                casts.append(helper.make_node("Cast", [source], [tensor], to=kind))
            node.input[position] = tensor
            opened[pair][name] = Parameter(source, default, tensor)
    splice(model, {"": casts})
    return opened


def _readers(graph: Graph, norm: Norm) -> dict[ParameterName, tuple[onnx.NodeProto, int]]:
    """Which node applies gamma and beta, and which of its inputs they are."""
    found: dict[ParameterName, tuple[onnx.NodeProto, int]] = {}
    last = norm.nodes[-1]
    if len(norm.nodes) == 1:
        operator = OPERATORS[last.op_type]
        found["gamma"] = (last, operator.gamma)
        if operator.beta is not None and operator.beta < len(last.input) and last.input[operator.beta]:
            found["beta"] = (last, operator.beta)
        return found
    for node in norm.nodes[_NORMALIZING:]:
        constants = [i for i, name in enumerate(node.input) if graph.is_constant(name)]
        if node.op_type == "Mul" and constants and norm.gamma is not None:
            found["gamma"] = (node, constants[0])
        if node.op_type in ("Add", "Sub") and constants and norm.beta is not None:
            found["beta"] = (node, constants[0])
    return found
