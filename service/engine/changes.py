"""What is tried on a model: the changes of a request, its layers chosen, in; inputs and formulas of its opened graph out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.artifact import Layer
from models.instrument.formulas import Formula
from models.instrument.opened import Place
from models.instrument.renormalize import Renormalization
from service.errors import InvalidRequestError, NoReferenceError

Normalization = Literal["batch", "layer", "group", "none"]


@dataclass(frozen=True)
class ChannelMoments:
    """Mean and variance (C,) of what enters a layer, over many samples."""

    mean: NDArray[np.float64]
    var: NDArray[np.float64]


@dataclass(frozen=True)
class ParameterChange:
    """gamma * gamma_scale + gamma_shift, and beta likewise."""

    layers: tuple[Layer, ...]
    gamma_scale: float = 1
    gamma_shift: float = 0
    beta_scale: float = 1
    beta_shift: float = 0

    def apply(self, places: Mapping[str, Place], values: dict[str, NDArray[np.float32]]) -> None:
        """Adds to the values of inputs; what an earlier change has set is changed further."""
        for layer in self.layers:
            for name, scale, shift in (
                ("gamma", self.gamma_scale, self.gamma_shift),
                ("beta", self.beta_scale, self.beta_shift),
            ):
                parameter = next((each for key, each in places[layer.layer].parameters.items() if key == name), None)
                if parameter is not None and (scale, shift) != (1, 0):
                    now = values.get(parameter.input, parameter.value).astype(np.float64)
                    values[parameter.input] = (now * scale + shift).astype(np.float32)


@dataclass(frozen=True)
class BranchChange:
    """identity * identity_scale + residual * residual_scale."""

    layers: tuple[Layer, ...]
    residual_scale: float = 1
    identity_scale: float = 1

    def apply(self, places: Mapping[str, Place], values: dict[str, NDArray[np.float32]]) -> None:
        """Adds to the values of inputs; what an earlier change has scaled is scaled further."""
        for layer in self.layers:
            for side, scale in (("residual", self.residual_scale), ("identity", self.identity_scale)):
                branch = places[layer.layer].branches.get(side)
                if branch is not None and scale != 1:
                    values[branch.input] = values.get(branch.input, np.ones(1, np.float32)) * np.float32(scale)


@dataclass(frozen=True)
class NormalizationChange:
    """Another formula; `groups` for `group` alone."""

    layers: tuple[Layer, ...]
    normalization: Normalization
    groups: int = 0


Change = ParameterChange | BranchChange | NormalizationChange
Key = tuple[tuple[str, Normalization, int], ...]
"""Which layers compute which formula; what an opened graph is built for."""


def set_values(changes: Sequence[Change], places: Mapping[str, Place]) -> dict[str, NDArray[np.float32]]:
    """The inputs that the changes set, in their order."""
    values: dict[str, NDArray[np.float32]] = {}
    with np.errstate(over="ignore"):  # many large factors are infinite together, which the statistics tell
        for change in changes:
            if not isinstance(change, NormalizationChange):
                change.apply(places, values)
    return values


def formulas_key(changes: Sequence[Change], places: Mapping[str, Place]) -> Key:
    """The layers that get another formula than their own; of several changes of one layer the last one counts."""
    wanted: dict[str, tuple[Normalization, int]] = {}
    for change in changes:
        if isinstance(change, NormalizationChange):
            wanted |= {layer.layer: (change.normalization, change.groups) for layer in change.layers}
    kinds = {layer.layer: layer.kind for change in changes for layer in change.layers}
    own = {
        name
        for name, (normalization, groups) in wanted.items()
        if _is_own(kinds[name], places[name].formula, normalization, groups)
    }
    return tuple(sorted((name, *choice) for name, choice in wanted.items() if name not in own))


def _is_own(kind: str, formula: Formula | None, normalization: Normalization, groups: int) -> bool:
    if kind != f"{normalization}_norm":
        return False
    return normalization != "group" or (formula is not None and formula.groups == groups)


def renormalization(
    layer: Layer, formula: Formula | None, normalization: Normalization, groups: int, moments: ChannelMoments | None
) -> Renormalization:
    """What is computed at a layer.

    Args:
        layer: a normalization.
        formula: its own, if it is known.
        normalization: the wanted one.
        groups: of `group`.
        moments: those of the reference, for `batch`.

    Raises:
        NoReferenceError: `batch`, and nothing tells mean and variance of the channels.
        InvalidRequestError: the shape of the layer is not known.
    """
    if layer.shape is None or layer.epsilon is None:
        raise InvalidRequestError(
            f"normalization: the shape of {layer.layer} is not known",
            value=layer.layer,
            remedy="choose layers whose shape GET /v1/models/{model}/layers tells",
        )
    shape = tuple(layer.shape)
    axis = layer.channel_axis % len(shape)
    is_last = axis == len(shape) - 1
    if normalization == "none":
        return Renormalization(None, axis, shape)
    if normalization == "group":
        return Renormalization(Formula(layer.epsilon, groups=groups), axis, shape)
    if normalization == "layer":
        own = formula.axes if formula is not None and formula.axes else (-1,)
        return Renormalization(Formula(layer.epsilon, axes=own) if is_last else Formula(layer.epsilon, groups=1), axis, shape)
    if moments is None:
        raise NoReferenceError(
            f"normalization: {layer.layer} has no running statistics, and the model no reference to take them from",
            value=layer.layer,
            limit="batch needs mean and variance of every channel",
            remedy="make a reference (`python -m models reference`) and load the model again, or choose layer, group or none",
        )
    return Renormalization(Formula(layer.epsilon, mean=moments.mean, var=moments.var), axis, shape)
