"""Statistics of a batch: what a run hands out in, for each sample and layer the statistics of every side out.

A batch never mixes its samples: row i of every array below is sample i alone.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.artifact import Layer
from models.instrument.observers import FIELDS, LISTED, Observer, Pair, Reduction
from models.statistics.moments import Activations, Floats, Moments, channel_moments, sample_dot

_RESIDUAL_ADD = "residual_add"
_SHARED_ELEMENTS = 1 << 20  # of a run from which on several threads pay


@dataclass(frozen=True)
class SideLayout:
    """The order of rows that all statistics of a model share: one row for each (layer, side), one for each residual add."""

    layers: tuple[Layer, ...]

    @cached_property
    def rows(self) -> list[tuple[Layer, str]]:
        return [(layer, side) for layer in self.layers for side in layer.tensors]

    @cached_property
    def reductions(self) -> list[Reduction]:
        """Each once: the sum of an add is often the input of the norm after it."""
        return list(dict.fromkeys(_reduction(layer, side) for layer, side in self.rows))

    @cached_property
    def reduction_of(self) -> list[int]:
        """For each row, the index of its reduction."""
        index = {each: i for i, each in enumerate(self.reductions)}
        return [index[_reduction(layer, side)] for layer, side in self.rows]

    @cached_property
    def adds(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.kind == _RESIDUAL_ADD]

    @cached_property
    def pairs(self) -> list[Pair]:
        """The sides of each residual add."""
        return [Pair(*(_reduction(layer, side) for side in ("identity", "residual", "sum"))) for layer in self.adds]

    @cached_property
    def row_of(self) -> dict[tuple[str, str], int]:
        return {(layer.layer, side): i for i, (layer, side) in enumerate(self.rows)}

    @cached_property
    def add_of(self) -> dict[str, int]:
        return {layer.layer: i for i, layer in enumerate(self.adds)}


def _reduction(layer: Layer, side: str) -> Reduction:
    return Reduction(layer.tensors[side], layer.channel_axis, layer.mask)


@dataclass(frozen=True)
class RunOutputs:
    """What a run hands out for statistics of N samples.

    Attributes:
        tensors: name -> activation (N, ...) of every tensor that no observer reduces.
        summary: float64 (N, ...), the numbers of the observers; None without any.
        channels: of each observer float32 (N, ...), its numbers by channel; empty where they were not asked for.
    """

    tensors: Mapping[str, Activations]
    summary: Floats | None = None
    channels: Sequence[NDArray[np.float32]] = ()


@dataclass(frozen=True)
class BatchStatistics:
    """Statistics of N samples over S rows (layer and side) and A residual adds.

    Attributes:
        layout: the order of rows.
        pooled: over the channels: (N, S).
        residual_ratio: l2(F(x)) / l2(x), (N, A); NaN where l2(x) is 0 or a side is not finite.
        cosine: of F(x) and x, (N, A); NaN where either norm is 0 or a side is not finite.
        channels: the moments (N, C) of the channels of one row; to be called only where the run was asked for channels.
    """

    layout: SideLayout
    pooled: Moments
    residual_ratio: Floats
    cosine: Floats
    channels: Callable[[int], Moments]

    def __len__(self) -> int:
        return len(self.residual_ratio)

    def sample(self, i: int) -> "SampleStatistics":
        return SampleStatistics(self, i)


@dataclass(frozen=True)
class _Place:
    """Where an observer's numbers of one reduction are: from `start` in the summary; in row `row` of those by channel."""

    observer: int
    row: int
    start: int


class BatchReducer:
    """Makes the statistics of batches: reads the numbers of observers, and reduces the tensors that none observes."""

    def __init__(self, layout: SideLayout, observers: Sequence[Observer] = ()) -> None:
        self._layout = layout
        self._rows = [len(observer.rows) for observer in observers]
        places: dict[Reduction, _Place] = {}
        dots: dict[Pair, int] = {}
        end = 0
        for i, observer in enumerate(observers):
            for row, reduction in enumerate(observer.rows):
                places.setdefault(reduction, _Place(i, row, end))
                end += FIELDS
            if observer.pair:
                dots[observer.pair] = end
            end += 2
        self._places = [places.get(each) for each in layout.reductions]
        self._others = [i for i, place in enumerate(self._places) if place is None]
        nowhere = [0] * FIELDS  # of the summary; overwritten by what numpy finds
        columns = [nowhere if place is None else list(range(place.start, place.start + FIELDS)) for place in self._places]
        self._columns = np.array([columns[i] for i in layout.reduction_of], int).reshape(-1, FIELDS).T
        self._other_rows = [(row, i) for row, i in enumerate(layout.reduction_of) if i in self._others]
        self._dots = np.array([dots.get(pair, 0) for pair in layout.pairs], int)
        self._other_pairs = [(i, pair) for i, pair in enumerate(layout.pairs) if pair not in dots]
        self._identities = np.array([layout.row_of[layer.layer, "identity"] for layer in layout.adds], int)
        self._residuals = np.array([layout.row_of[layer.layer, "residual"] for layer in layout.adds], int)

    def reduce(self, outputs: RunOutputs, inputs: Mapping[str, NDArray[Any]], workers: Executor | None = None) -> BatchStatistics:
        """Computes all statistics of a run.

        Args:
            outputs: of the run.
            inputs: of the run; the masks of the layers are among them.
            workers: threads that share the tensors among them; numpy leaves the interpreter free for most of the work.
        """
        n = len(next(iter(inputs.values())))
        observed = np.zeros((n, 1)) if outputs.summary is None else outputs.summary
        masks = {name: inputs[name].astype(bool) for i in self._others if (name := self._layout.reductions[i].mask)}
        others = dict(zip(self._others, self._reduce_tensors(outputs.tensors, masks, workers), strict=True))
        numbers = observed.take(self._columns, axis=1)  # (N, 7, S)
        dots = observed.take(self._dots, axis=1)
        totals = {i: part.pool(axis=1) for i, part in others.items()}
        for row, i in self._other_rows:
            numbers[:, :, row] = np.stack([getattr(totals[i], field.name) for field in fields(Moments)], axis=1)
        for i, pair in self._other_pairs:
            x, f = outputs.tensors[pair.identity.tensor], outputs.tensors[pair.residual.tensor]
            dots[:, i] = sample_dot(x, f, masks[pair.identity.mask] if pair.identity.mask else None)
        pooled = Moments(*(numbers[:, i] for i in range(FIELDS)))
        ratio, cosine = self._relate(pooled, dots)

        def channels(row: int) -> Moments:
            i = self._layout.reduction_of[row]
            return others[i] if i in others else self._read_channels(outputs, i)

        return BatchStatistics(self._layout, pooled, ratio, cosine, channels)

    def _reduce_tensors(
        self, tensors: Mapping[str, Activations], masks: Mapping[str, NDArray[np.bool_]], workers: Executor | None
    ) -> list[Moments]:
        elements = sum(tensor.size for tensor in tensors.values())
        run = map if workers is None or elements < _SHARED_ELEMENTS else workers.map

        def reduce(i: int) -> Moments:
            each = self._layout.reductions[i]
            return channel_moments(tensors[each.tensor], each.channel_axis, masks[each.mask] if each.mask else None)

        return list(run(reduce, self._others))

    def _read_channels(self, outputs: RunOutputs, i: int) -> Moments:
        """Moments (N, C) of an observed reduction, by its index."""
        place = self._places[i]
        assert place is not None  # observed
        assert outputs.summary is not None
        values = outputs.channels[place.observer]
        extent = values.shape[1] // (self._rows[place.observer] * LISTED)
        listed = values.reshape(len(values), -1, LISTED, extent)[:, place.row].astype(np.float64)
        mean, std, minimum, maximum, zeros, nonfinite = (listed[:, field] for field in range(LISTED))
        count = np.broadcast_to(outputs.summary[:, place.start, None] / extent, mean.shape)
        return Moments(count, mean, std**2 * count, minimum, maximum, zeros, nonfinite)

    def _relate(self, pooled: Moments, dots: Floats) -> tuple[Floats, Floats]:
        """residual_ratio and cosine (N, A) of all adds, from their dot products."""
        l2 = pooled.l2
        identity, residual = l2.take(self._identities, axis=1), l2.take(self._residuals, axis=1)
        product = identity * residual
        ratio, cosine = np.full_like(dots, np.nan), np.full_like(dots, np.nan)
        np.divide(residual, identity, out=ratio, where=identity > 0)
        np.divide(dots, product, out=cosine, where=product > 0)
        return ratio, cosine


def summary(moments: Moments, row: int | tuple[int, ...]) -> dict[str, float | int | None]:
    """The statistics of one group of elements as the API names them; null where they are undefined."""
    count, nonfinite = int(moments.count[row]), int(moments.nonfinite[row])
    if nonfinite or not count:
        undefined = ("mean", "var", "std", "min", "max", "l2", "zeros")
        return {"count": count, **dict.fromkeys(undefined), "nonfinite": nonfinite}
    var = float(moments.m2[row]) / count
    mean = float(moments.mean[row])
    return {
        "count": count,
        "mean": mean,
        "var": var,
        "std": var**0.5,
        "min": float(moments.minimum[row]),
        "max": float(moments.maximum[row]),
        "l2": (float(moments.m2[row]) + count * mean * mean) ** 0.5,
        "zeros": float(moments.zeros[row]) / count,
        "nonfinite": 0,
    }


@dataclass(frozen=True)
class SampleStatistics:
    """The statistics of one sample of a batch, as the API shows them."""

    batch: BatchStatistics
    index: int

    def describe(self, layers: Sequence[Layer], *, channels: bool) -> list[dict[str, Any]]:
        """The chosen layers in the given order; `channels` adds a list along the channel axis to every statistic."""
        return [self._layer(layer, channels) for layer in layers]

    def _layer(self, layer: Layer, channels: bool) -> dict[str, Any]:
        layout = self.batch.layout
        described: dict[str, Any] = {"layer": layer.layer, "kind": layer.kind}
        for side in layer.tensors:
            row = layout.row_of[layer.layer, side]
            described[side] = summary(self.batch.pooled, (self.index, row))
            if channels:
                described[side]["channels"] = self._channels(row)
        if layer.kind == _RESIDUAL_ADD:
            add = layout.add_of[layer.layer]
            described["residual_ratio"] = _finite(self.batch.residual_ratio[self.index, add])
            described["cosine"] = _finite(self.batch.cosine[self.index, add])
        return described

    def _channels(self, row: int) -> dict[str, list[float | int | None]]:
        moments = self.batch.channels(row)
        i = self.index
        count = np.maximum(moments.count[i], 1)
        var = moments.var[i]
        values = {
            "mean": moments.mean[i],
            "var": var,
            "std": np.sqrt(var),
            "min": moments.minimum[i],
            "max": moments.maximum[i],
            "l2": moments.l2[i],
            "zeros": np.where(moments.nonfinite[i] > 0, np.nan, moments.zeros[i] / count),
        }
        listed: dict[str, list[float | int | None]] = {}
        for name, value in values.items():
            numbers = value.tolist()
            finite = bool(np.isfinite(value).all())
            listed[name] = numbers if finite else [_finite(number) for number in numbers]
        listed["nonfinite"] = moments.nonfinite[i].astype(int).tolist()
        return listed


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
