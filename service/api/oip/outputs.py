"""The outputs of a request: which are wanted, checked before the run, and outcomes in, tensors out. Knows no HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.api.oip.classification import classify
from service.api.oip.datatypes import BYTES, Tensor
from service.api.oip.interface import ModelInterface
from service.api.oip.layer_statistics import StatisticOutput, StatisticsReader
from service.api.oip.request import InferRequest, RequestedOutput
from service.engine.calls import Outcome
from service.errors import InvalidRequestError, TooManyValuesError

ASIDE_OUTPUTS = 100
"""From so many on, making the tensors would hold up an event loop."""


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """One output of the answer: layer statistics, or the logits, or the `classes` best of them."""

    name: str
    binary: bool
    statistic: StatisticOutput | None = None
    classes: int = 0

    @property
    def by_channel(self) -> bool:
        return self.statistic is not None and self.statistic.channels_of is not None


def choose_outputs(request: InferRequest, interface: ModelInterface, max_values: int) -> list[WantedOutput]:
    """The outputs in the order of the answer: as listed, or else the logits; then what `layer_statistics` adds.

    Added statistics go as the request's `binary_data_output` says; where it says nothing, as binary if all listed outputs do.

    Raises:
        InvalidRequestError: an output that the model does not have, is listed twice, or has no classes.
        TooManyValuesError: more than `max_values` statistics.
    """
    listed = request.outputs or (RequestedOutput(interface.output.name),)
    default = bool(request.binary)
    chosen: dict[str, WantedOutput] = {}
    for output in listed:
        statistic = None if output.name == interface.output.name else interface.statistics.find(output.name)
        if output.name in chosen or (statistic is None and output.name != interface.output.name):
            raise InvalidRequestError(
                f"output {output.name[:200]} is {'listed twice' if output.name in chosen else 'not known to the model'}",
                value=output.name,
                limit=interface.output.name,
                remedy=f"ask for {interface.output.name}, or layer statistics by the names in the model's configuration",
            )
        if statistic is not None and output.classes:
            raise InvalidRequestError(
                f"output {output.name} has no classes",
                value=output.classes,
                limit=interface.output.name,
                remedy=f"ask for the classification of {interface.output.name} only",
            )
        binary = default if output.binary is None else output.binary
        chosen[output.name] = WantedOutput(output.name, binary, statistic, output.classes)
    added = default if request.binary is not None or not request.outputs else all(each.binary for each in chosen.values())
    for name, statistic in interface.statistics.of_level(request.level).items():
        chosen.setdefault(name, WantedOutput(name, added, statistic))
    _check_values(request.tensors[0].shape[0], list(chosen.values()), max_values)
    return list(chosen.values())


def _check_values(count: int, chosen: Sequence[WantedOutput], limit: int) -> None:
    values = count * sum(output.statistic.width or 0 for output in chosen if output.statistic is not None)
    if values > limit:
        raise TooManyValuesError(
            f"the answer would hold {values} statistics, more than {limit}",
            value=values,
            limit=limit,
            remedy="name fewer statistics in outputs, send fewer inputs, or raise NORMSCOPE_MAX_STATISTICS_VALUES",
        )


def make_outputs(chosen: Sequence[WantedOutput], outcomes: Sequence[Outcome], interface: ModelInterface) -> list[Tensor]:
    """The tensors of the chosen outputs; the outcomes hold statistics if any is among them."""
    logits = np.stack([outcome.logits for outcome in outcomes])
    reader = StatisticsReader([outcome.statistics for outcome in outcomes if outcome.statistics is not None])
    tensors = []
    for output in chosen:
        if output.classes:
            labels = interface.manifest.labels
            shape = (len(logits), min(output.classes, len(labels)))
            tensors.append(Tensor(output.name, BYTES, shape, classify(logits, output.classes, labels)))
        else:
            values = logits if output.statistic is None else reader.read(output.statistic)
            tensors.append(Tensor(output.name, "FP32", values.shape, values))
    return tensors
