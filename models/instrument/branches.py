"""Opens residual adds: a graph in, the same graph whose branches a run may scale, also by 0, out.

Rules:
    1. x + F(x) becomes a * x + b * F(x). a and b are new graph inputs, float32 numbers with 1 as initializer, so that they may be
       left out of a run: nothing changes then.
    2. Only what the Add reads is scaled; whatever else reads x or F(x) reads it as it was.
    3. A branch that is scaled by 0 is removed: 0, also where it is not finite.
    4. Activations of another type read the inputs through a Cast.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.instrument.graph import Graph
from models.instrument.residual_adds import SUMS
from models.instrument.splicing import element_types, splice

_ZERO = "normscope.zero"


@dataclass(frozen=True)
class Branch:
    """One side of an add.

    Attributes:
        input: of the graph, the factor.
        tensor: the scaled side, which is added.
    """

    input: str
    tensor: str


def open_branches(model: onnx.ModelProto, adds: Iterable[tuple[str, str, str]]) -> list[dict[str, Branch]]:
    """Opens residual adds in place.

    Args:
        model: with inferred shapes.
        adds: their tensors (identity, residual, sum), as `find_probes` names them.

    Returns:
        for each add `identity` and `residual`; empty where no Add makes the sum of the two.
    """
    model.ir_version = max(model.ir_version, 4)  # from here on an input may have a default
    graph, types = Graph(model), element_types(model)
    inserted: dict[str, list[onnx.NodeProto]] = {}
    opened: list[dict[str, Branch]] = []
    for i, (identity, residual, total) in enumerate(adds):
        add = graph.producer(total)
        branches: dict[str, Branch] = {}
        if add is not None and add.op_type in SUMS and set(add.input) == {identity, residual}:
            kind = types.get(identity) or types.get(residual) or TensorProto.FLOAT
            for side, tensor in (("identity", identity), ("residual", residual)):
                name = f"normscope.{i}.{side}"
                model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), f"{name}.scale"))
                model.graph.input.append(helper.make_tensor_value_info(f"{name}.scale", TensorProto.FLOAT, [1]))
                inserted.setdefault(total, []).extend(_scaled(name, tensor, kind))
                add.input[list(add.input).index(tensor)] = name
                branches[side] = Branch(f"{name}.scale", name)
        opened.append(branches)
    if inserted:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), _ZERO))
    splice(model, inserted)
    return opened


def _scaled(name: str, tensor: str, kind: int) -> list[onnx.NodeProto]:
    """Nodes that make `name`, the tensor times the input `name`.scale."""
    factor, zero, removed, product = (f"{name}.{part}" for part in ("factor", "zero", "removed", "product"))
    return [
        helper.make_node("Cast", [f"{name}.scale"], [factor], to=kind),
        helper.make_node("Cast", [_ZERO], [zero], to=kind),
        helper.make_node("Equal", [f"{name}.scale", _ZERO], [removed]),
        helper.make_node("Mul", [tensor, factor], [product]),
        helper.make_node("Where", [removed, zero, product], [name]),
    ]
