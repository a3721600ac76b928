"""The outputs of a request: which are wanted, checked before the run, and outcomes in, tensors out. Knows no HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.api.oip.classification import classify
from service.api.oip.datatypes import BYTES, Tensor
from service.api.oip.interface import ModelInterface
from service.api.oip.layer_statistics import StatisticOutput, StatisticsReader
from service.api.oip.request import InferRequest, RequestedOutput
from service.engine.outcomes import Outcome
from service.errors import InvalidRequestError, TooManyValuesError

_MANY_OUTPUTS, _MANY_VALUES = 100, 10_000


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """One output of the answer: layer statistics, or one of the model, or its `classes` best scores."""

    name: str
    binary: bool
    statistic: StatisticOutput | None = None
    classes: int = 0

    @property
    def by_channel(self) -> bool:
        return self.statistic is not None and self.statistic.channels_of is not None


def choose_outputs(request: InferRequest, interface: ModelInterface, max_values: int) -> list[WantedOutput]:
    """The outputs in the order of the answer: as listed, or else all of the model; then what `layer_statistics` adds.

    Added statistics go as the request's `binary_data_output` says; where it says nothing, as binary if all listed outputs do.

    Raises:
        InvalidRequestError: an output that the model does not have, is listed twice, or has no classes.
        TooManyValuesError: more than `max_values` statistics.
    """
    listed = request.outputs or tuple(map(RequestedOutput, interface.outputs))
    default = bool(request.binary)
    chosen: dict[str, WantedOutput] = {}
    for output in listed:
        is_declared = output.name in interface.outputs
        statistic = None if is_declared else interface.statistics.find(output.name)
        if output.name in chosen or (statistic is None and not is_declared):
            names = ", ".join(interface.outputs)
            raise InvalidRequestError(
                f"output {output.name[:200]} is {'listed twice' if output.name in chosen else 'not known to the model'}",
                value=output.name,
                limit=names,
                remedy=f"ask for {names}, or layer statistics by the names in the model's configuration",
            )
        if output.classes and output.name != interface.scores:
            raise InvalidRequestError(
                f"output {output.name} has no classes",
                value=output.classes,
                limit=interface.scores,
                remedy=f"ask for the classification of {interface.scores} only"
                if interface.scores
                else "ask for its values: the model has no labels",
            )
        binary = default if output.binary is None else output.binary
        chosen[output.name] = WantedOutput(output.name, binary, statistic, output.classes)
    added = default if request.binary is not None or not request.outputs else all(each.binary for each in chosen.values())
    for name, statistic in interface.statistics.of_level(request.level).items():
        chosen.setdefault(name, WantedOutput(name, added, statistic))
    rows = request.tensors[0].shape[0] if interface.manifest.batched else 1
    _check_values(rows, list(chosen.values()), max_values)
    return list(chosen.values())


def _check_values(count: int, chosen: Sequence[WantedOutput], limit: int) -> None:
    values = count * sum(output.statistic.width or 0 for output in chosen if output.statistic is not None)
    TooManyValuesError.check(values, limit, "name fewer statistics in outputs, send fewer inputs")


def takes_long(chosen: Sequence[WantedOutput], outcomes: Sequence[Outcome], interface: ModelInterface) -> bool:
    """Whether there is so much in the outputs that making and encoding them would hold up an event loop."""
    if len(chosen) >= _MANY_OUTPUTS:
        return True
    names = {output.name for output in chosen}
    indexes = [i for i, name in enumerate(interface.outputs) if name in names]
    statistics = sum(output.statistic.width or 0 for output in chosen if output.statistic is not None)
    return sum(statistics + sum(outcome.outputs[i].size for i in indexes) for outcome in outcomes) >= _MANY_VALUES


def make_outputs(chosen: Sequence[WantedOutput], outcomes: Sequence[Outcome], interface: ModelInterface) -> list[Tensor]:
    """The tensors of the chosen outputs; the outcomes hold statistics if any is among them.

    Raises:
        InvalidRequestError: an output has another shape for each of the inputs.
    """
    reader = StatisticsReader([outcome.statistics for outcome in outcomes if outcome.statistics is not None])
    return [_make_output(output, outcomes, interface, reader) for output in chosen]


def _make_output(output: WantedOutput, outcomes: Sequence[Outcome], interface: ModelInterface, reader: StatisticsReader) -> Tensor:
    if output.statistic is not None:
        statistics = reader.read(output.statistic)
        return Tensor(output.name, "FP32", statistics.shape, statistics)
    index = list(interface.outputs).index(output.name)
    values = _join([outcome.outputs[index] for outcome in outcomes], output.name, batched=interface.manifest.batched)
    if output.classes:
        labels = interface.manifest.labels
        shape = (len(values), min(output.classes, len(labels)))
        return Tensor(output.name, BYTES, shape, classify(values, output.classes, labels))
    datatype = interface.outputs[output.name].datatype
    return Tensor(output.name, datatype, values.shape, values.ravel().tolist() if datatype == BYTES else values)


def _join(parts: list[NDArray[Any]], name: str, *, batched: bool) -> NDArray[Any]:
    """Of one output, the parts of all inputs; a model without batch has taken one, and gives its output whole."""
    if not batched:
        return parts[0]
    if len({part.shape for part in parts}) > 1:
        shapes = sorted({part.shape for part in parts})
        raise InvalidRequestError(
            f"output {name} has another shape for each of these inputs, which one tensor cannot hold",
            value=shapes[:10],
            limit="one shape",
            remedy=f"send inputs of equal length together, or one by one; or leave {name} out of the outputs",
        )
    return np.stack(parts)
