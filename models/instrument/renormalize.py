"""Puts another formula in the place of a normalization: an opened graph and formulas in, the same graph that computes those out.

Rules:
    1. What read the output of the normalization reads (x - mu) / sqrt(sigma^2 + epsilon) * gamma + beta instead, with x its input,
       and gamma and beta the opened ones of the layer. The operators of the normalization stay, but nothing reads them.
    2. mu and sigma^2 are those of the formula: constants of each channel, moments over axes, or moments over a group of channels
       with all other axes of the sample.
    3. Without a formula the affine part stays: x * gamma + beta.
    4. Channels that lie along the last axis are brought to axis 1 for the groups, and back.
    5. gamma and beta of GroupNormalization before opset 21 have one number for each group: each channel gets that of its group.
    6. Activations of another type than float32 are normalized in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.instrument.formulas import Formula
from models.instrument.graph import Dimension, Graph, attribute, opset
from models.instrument.norms import OPERATORS
from models.instrument.parameters import Parameter, ParameterName
from models.instrument.splicing import element_types, splice

_AXES_ARE_INPUTS = 18  # of ReduceMean from this opset on


class RenormalizationError(ValueError):
    """The graph does not tell what another formula needs to know of a layer."""


@dataclass(frozen=True)
class Renormalization:
    """What is computed in the place of a normalization.

    Attributes:
        formula: None leaves x as it is; `mean` and `var` belong to the channels, wherever they lie.
        channel_axis: of x, gamma and beta.
        shape: of x, where more is known than the graph tells.
    """

    formula: Formula | None
    channel_axis: int
    shape: tuple[Dimension, ...] | None = None


def renormalize(
    model: onnx.ModelProto, sides: tuple[str, str], parameters: Mapping[ParameterName, Parameter], wanted: Renormalization
) -> None:
    """Changes one normalization in place.

    Args:
        model: with inferred shapes.
        sides: the tensors (before, after) of the normalization.
        parameters: its gamma and beta, as `open_parameters` opened them.
        wanted: the formula.

    Raises:
        RenormalizationError: its shape is not known, the graph computes gamma, or gamma has another length than the channels.
    """
    before, after = sides
    graph = Graph(model)
    shape, node = wanted.shape or graph.shape(before), graph.producer(after)
    if shape is None or node is None:
        raise RenormalizationError("the shape of its input is not known")
    if node.op_type in OPERATORS and "gamma" not in parameters:
        raise RenormalizationError("the graph computes its gamma")
    repeats = _channels_of_each(node, shape[wanted.channel_axis], parameters)
    kind = element_types(model).get(before, TensorProto.FLOAT)
    builder = _Builder(f"{after}.renormalized", len(shape), wanted.channel_axis % len(shape), repeats, opset(model))
    x = builder.node("Cast", before, to=TensorProto.FLOAT)
    normalized = x if wanted.formula is None else builder.standardized(x, wanted.formula)
    y = builder.affine(normalized, parameters)
    output = list(node.output).index(after)
    node.output[output] = f"{after}.replaced"
    builder.nodes.append(helper.make_node("Cast", [y], [after], to=kind))
    model.graph.initializer.extend(builder.initializers)
    splice(model, {f"{after}.replaced": builder.nodes})


def _channels_of_each(node: onnx.NodeProto, channels: Dimension, parameters: Mapping[ParameterName, Parameter]) -> int:
    """How many channels share a number of gamma and beta: 1, or by rule 5 those of a group."""
    lengths = {each.value.size for each in parameters.values() if each.value.ndim == 1}
    if node.op_type == "GroupNormalization" and lengths == {attribute(node, "num_groups")} != {channels}:
        if not isinstance(channels, int):
            raise RenormalizationError("its gamma belongs to groups of channels, whose number is not known")
        return channels // lengths.pop()
    if isinstance(channels, int) and not lengths <= {channels}:
        raise RenormalizationError("its gamma and beta do not belong to channels")
    return 1


class _Builder:
    """Makes the nodes of one formula; every method takes names of tensors and gives the name of its result."""

    def __init__(self, prefix: str, rank: int, channel_axis: int, repeats: int, opset: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._prefix, self._rank, self._channel_axis, self._repeats, self._opset = prefix, rank, channel_axis, repeats, opset

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self._prefix}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, value: NDArray[np.generic]) -> str:
        name = f"{self._prefix}.constant.{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def standardized(self, x: str, formula: Formula) -> str:
        """Rule 2."""
        if formula.mean is not None and formula.var is not None:
            # as scale and shift: the graph's own BatchNormalization does so, and epsilon is added in float64
            scale = 1 / np.sqrt(formula.var + formula.epsilon)
            centred = self.node("Sub", x, self._along_channels(formula.mean))
            return self.node("Mul", centred, self._along_channels(scale))
        if not formula.groups:
            return self._over_axes(x, [axis % self._rank for axis in formula.axes], formula)
        first = self._moved(x, self._channel_axis, 1)
        grouped = self.node("Reshape", first, self.constant(np.array([0, formula.groups, -1])))
        normalized = self._over_axes(grouped, [2], formula)
        return self._moved(self.node("Reshape", normalized, self.node("Shape", first)), 1, self._channel_axis)

    def affine(self, x: str, parameters: Mapping[ParameterName, Parameter]) -> str:
        """x * gamma + beta, as far as they exist."""
        if "gamma" in parameters:
            x = self.node("Mul", x, self._parameter(parameters["gamma"]))
        return self.node("Add", x, self._parameter(parameters["beta"])) if "beta" in parameters else x

    def _over_axes(self, x: str, axes: list[int], formula: Formula) -> str:
        centred = self.node("Sub", x, self._mean(x, axes)) if formula.centred else x
        var = self._mean(self.node("Mul", centred, centred), axes)
        shifted = self.node("Add", var, self.constant(np.array(formula.epsilon, np.float32)))
        return self.node("Div", centred, self.node("Sqrt", shifted))

    def _mean(self, x: str, axes: list[int]) -> str:
        if self._opset >= _AXES_ARE_INPUTS:
            return self.node("ReduceMean", x, self.constant(np.array(axes)))
        return self.node("ReduceMean", x, axes=axes)

    def _moved(self, x: str, source: int, to: int) -> str:
        """Rule 4."""
        if source == to:
            return x
        order = [axis for axis in range(self._rank) if axis != source]
        order.insert(to, source)
        return self.node("Transpose", x, perm=order)

    def _along_channels(self, values: NDArray[np.float64]) -> str:
        """A constant (C,), in the shape in which it meets x."""
        return self.constant(values.astype(np.float32).reshape(self._channel_shape))

    def _parameter(self, parameter: Parameter) -> str:
        if parameter.value.ndim != 1 or self._channel_axis == self._rank - 1:
            return parameter.input
        values = parameter.input
        if self._repeats > 1:
            column = self.node("Reshape", values, self.constant(np.array([-1, 1])))
            values = self.node("Expand", column, self.constant(np.array([1, self._repeats])))
        return self.node("Reshape", values, self.constant(np.array(self._channel_shape)))

    @property
    def _channel_shape(self) -> list[int]:
        return [-1] + [1] * (self._rank - 1 - self._channel_axis)
