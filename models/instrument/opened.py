"""Opens a graph: every tensor around its normalizations and residual adds comes out, their gammas, betas and branches can be set.

Unlike a graph with observers it hands out whole activations, so it is for single inputs that somebody looks at, not for traffic.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import onnx

from models.instrument.branches import Branch, open_branches
from models.instrument.formulas import Formula, find_formulas
from models.instrument.parameters import Parameter, ParameterName, open_parameters
from models.instrument.renormalize import Renormalization, RenormalizationError, renormalize
from models.instrument.shapes import infer_shapes
from models.instrument.taps import add_taps


@dataclass(frozen=True)
class Place:
    """One normalization or residual add of an opened graph.

    Attributes:
        tensors: side -> output of the graph; of an add the branches as they are added, after scaling.
        formula: of a normalization, if it is known.
        parameters: those of a normalization that can be set.
        branches: side -> those of an add that can be scaled.
    """

    tensors: Mapping[str, str]
    formula: Formula | None = None
    parameters: Mapping[ParameterName, Parameter] = field(default_factory=dict)
    branches: Mapping[str, Branch] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenedGraph:
    """A graph and its places, by layer."""

    model: onnx.ModelProto
    places: Mapping[str, Place]


def open_graph(
    model: onnx.ModelProto,
    layers: Mapping[str, Mapping[str, str]],
    renormalizations: Mapping[str, Renormalization] = MappingProxyType({}),
) -> OpenedGraph:
    """A copy of the model, opened.

    Args:
        model: any ONNX model.
        layers: name -> side -> tensor, as `find_probes` finds them.
        renormalizations: of layers that are to compute another formula.

    Raises:
        UnknownTensorError: a tensor is not in the graph.
        RenormalizationError: a layer cannot compute another formula.
    """
    opened = infer_shapes(model, {})
    norms = {name: (sides["before"], sides["after"]) for name, sides in layers.items() if "before" in sides}
    adds = {name: (sides["identity"], sides["residual"], sides["sum"]) for name, sides in layers.items() if "sum" in sides}
    formulas = find_formulas(opened, norms.values())
    parameters = open_parameters(opened, norms.values())
    for name, wanted in renormalizations.items():
        try:
            renormalize(opened, norms[name], parameters[norms[name]], wanted)
        except RenormalizationError as error:
            raise RenormalizationError(f"{name}: {error}") from None
    branches = dict(zip(adds, open_branches(opened, adds.values()), strict=True))
    places = {name: Place(layers[name], formulas.get(pair), parameters[pair]) for name, pair in norms.items()}
    for name, of_add in branches.items():
        places[name] = Place({**layers[name], **{side: branch.tensor for side, branch in of_add.items()}}, branches=of_add)
    ordered = {name: places[name] for name in layers}
    return OpenedGraph(add_taps(opened, [tensor for place in ordered.values() for tensor in place.tensors.values()]), ordered)
