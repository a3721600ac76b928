"""Layer statistics as output tensors: their names and rows, and samples in, arrays (N, rows) or (N, C) out. Knows no HTTP."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from models.statistics.layers import SampleStatistics, SideLayout
from models.statistics.moments import Floats, Moments
from service.api.schemas import Level

LEVELS: tuple[Level, ...] = get_args(Level)

_PREFIX = "statistics"
_ADD = "add"
_OF_CHANNELS: Mapping[str, Callable[[Moments], Floats]] = {
    "mean": lambda moments: moments.mean,
    "var": lambda moments: moments.var,
    "std": lambda moments: np.sqrt(moments.var),
    "min": lambda moments: moments.minimum,
    "max": lambda moments: moments.maximum,
    "l2": lambda moments: moments.l2,
    "zeros": lambda moments: moments.zeros / np.maximum(moments.count, 1),
    "nonfinite": lambda moments: moments.nonfinite,
}
_OF_SIDES: Mapping[str, Callable[[Moments], Floats]] = {"count": lambda moments: moments.count, **_OF_CHANNELS}
_OF_ADDS: Mapping[str, Callable[[SampleStatistics], Floats]] = {
    "residual_ratio": lambda sample: sample.batch.residual_ratio[sample.index],
    "cosine": lambda sample: sample.batch.cosine[sample.index],
}
_ALWAYS_DEFINED = ("count", "nonfinite")


@dataclass(frozen=True)
class StatisticOutput:
    """One output tensor.

    Attributes:
        statistic: its name, the last part of the tensor's name.
        width: values for each input; None where it is not known before a run.
        rows: of a summary, the rows of the layout.
        channels_of: of channels, the row of the layout.
    """

    statistic: str
    width: int | None
    rows: tuple[int, ...] = ()
    channels_of: int | None = None


class StatisticsCatalogue:
    """All statistics that a model can give as outputs, in order."""

    def __init__(self, layout: SideLayout) -> None:
        rows: dict[str, list[int]] = {}
        for i, (_, side) in enumerate(layout.rows):
            rows.setdefault(side, []).append(i)
        self.rows: dict[str, list[str]] = {side: [layout.rows[i][0].layer for i in indexes] for side, indexes in rows.items()}
        """side -> layers, in the order of the rows of its summary."""
        if layout.adds:
            self.rows[_ADD] = [layer.layer for layer in layout.adds]
        self.summary: dict[str, StatisticOutput] = {
            f"{_PREFIX}.{side}.{statistic}": StatisticOutput(statistic, len(indexes), rows=tuple(indexes))
            for side, indexes in rows.items()
            for statistic in _OF_SIDES
        }
        for statistic in _OF_ADDS if layout.adds else ():
            self.summary[f"{_PREFIX}.{_ADD}.{statistic}"] = StatisticOutput(statistic, len(layout.adds))
        self.channels: dict[str, StatisticOutput] = {}
        for i, (layer, side) in enumerate(layout.rows):
            for statistic in _OF_CHANNELS:
                self.channels[f"{_PREFIX}.{layer.layer}.{side}.{statistic}"] = StatisticOutput(
                    statistic, layer.channels, channels_of=i
                )

    def find(self, name: str) -> StatisticOutput | None:
        """The output of this name."""
        return self.summary.get(name) or self.channels.get(name)

    def of_level(self, level: Level) -> dict[str, StatisticOutput]:
        """The outputs that a level adds."""
        if level == "none":
            return {}
        return self.summary if level == "summary" else self.summary | self.channels


class StatisticsReader:
    """Reads outputs from the samples of one request, which may come from several batches."""

    def __init__(self, samples: Sequence[SampleStatistics]) -> None:
        self._samples = samples
        self._moments: dict[int | None, Moments] = {}

    def read(self, output: StatisticOutput) -> NDArray[np.float32]:
        """One output, float32 (N, rows) or (N, C); NaN where it is undefined, infinite where float32 ends."""
        if output.statistic in _OF_ADDS:
            values = np.stack([_OF_ADDS[output.statistic](sample) for sample in self._samples])
        else:
            moments = self._moments_of(output.channels_of)
            values = _OF_SIDES[output.statistic](moments)
            if output.statistic not in _ALWAYS_DEFINED:
                values = np.where((moments.nonfinite > 0) | (moments.count == 0), np.nan, values)
            if output.channels_of is None:
                values = values[:, output.rows]
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, np.float32)

    def _moments_of(self, row: int | None) -> Moments:
        """The moments (N, C) of a row of the layout, or (N, S) of all rows for None."""
        if row not in self._moments:
            each = [(sample.batch.pooled if row is None else sample.batch.channels(row), sample.index) for sample in self._samples]
            self._moments[row] = Moments(
                *(np.stack([getattr(moments, field.name)[i] for moments, i in each]) for field in fields(Moments))
            )
        return self._moments[row]
