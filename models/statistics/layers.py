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
from models.instrument.observers import FIELDS, Observer, Pair, Reduction
from models.statistics.moments import Activations, Floats, Moments, channel_moments, sample_dot

_RESIDUAL_ADD = "residual_add"
_FIELDS = tuple(field.name for field in fields(Moments))
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
    def channels(self) -> list[int | None]:
        """C of each reduction; None where it is not known."""
        found = {i: layer.channels for (layer, _), i in zip(self.rows, self.reduction_of, strict=True)}
        return [found[i] for i in range(len(self.reductions))]

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
    return Reduction(layer.tensors[side], layer.channel_axis, layer.mask, layer.mask_axis)


@dataclass(frozen=True)
class RunOutputs:
    """What a run hands out for statistics of N samples.

    Attributes:
        tensors: name -> activation (N, ...) of every tensor that no observer reduces.
        summary: float64 (N, ...), the numbers of the observers; None without any.
        channels: of each observer float64 (N, ...), its numbers by channel; empty where they were not asked for.
    """

    tensors: Mapping[str, Activations]
    summary: Floats | None = None
    channels: Sequence[Floats] = ()


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
    """Where an observer's numbers of one reduction are: from `start` in the summary; in row `row` of `rows` in those by channel."""

    observer: int
    row: int
    rows: int
    start: int


class BatchReducer:
    """Makes the statistics of batches: reads the numbers of observers, and reduces the tensors that none observes."""

    def __init__(self, layout: SideLayout, observers: Sequence[Observer] = ()) -> None:
        self._layout = layout
        places: dict[Reduction, _Place] = {}
        dots: dict[Pair, int] = {}
        end = 0
        for i, observer in enumerate(observers):
            for row, reduction in enumerate(observer.rows):
                places.setdefault(reduction, _Place(i, row, len(observer.rows), end))
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
        self._masks = {name for i in self._others if (name := layout.reductions[i].mask)}
        sides = [layout.row_of[layer.layer, side] for side in ("identity", "residual") for layer in layout.adds]
        self._sides = np.array(sides, int)

    def reduce(self, outputs: RunOutputs, inputs: Mapping[str, NDArray[Any]], workers: Executor | None = None) -> BatchStatistics:
        """Computes all statistics of a run.

        Args:
            outputs: of the run.
            inputs: of the run; the masks of the layers are among them.
            workers: threads that share the tensors among them; numpy leaves the interpreter free for most of the work.
        """
        first = next(iter(inputs.values()))
        n = len(first) if first.ndim else 1  # of a model without batch, whose layers are none
        observed = np.zeros((n, 1)) if outputs.summary is None else outputs.summary
        numbers = observed.take(self._columns, axis=1)  # (N, 7, S)
        dots = observed.take(self._dots, axis=1)
        others: dict[int, Moments] = {}
        if self._others or self._other_pairs:
            masks = {name: inputs[name].astype(bool) for name in self._masks}
            others = dict(zip(self._others, self._reduce_tensors(outputs.tensors, masks, workers), strict=True))
            totals = {i: part.pool(axis=1) for i, part in others.items()}
            for row, i in self._other_rows:
                numbers[:, :, row] = np.stack([getattr(totals[i], field) for field in _FIELDS], axis=1)
            for i, pair in self._other_pairs:
                x, f = outputs.tensors[pair.identity.tensor], outputs.tensors[pair.residual.tensor]
                real = _real(pair.identity, x.shape, masks)
                dots[:, i] = sample_dot(x, f, real, pair.identity.channel_axis)
        ratio, cosine = self._relate(numbers, dots)
        pooled = Moments(*numbers.swapaxes(0, 1))
        channels = _Channels(self._layout, self._places, others, outputs.channels)
        return BatchStatistics(self._layout, pooled, ratio, cosine, channels.of)

    def _reduce_tensors(
        self, tensors: Mapping[str, Activations], masks: Mapping[str, NDArray[np.bool_]], workers: Executor | None
    ) -> list[Moments]:
        elements = sum(tensor.size for tensor in tensors.values())
        run = map if workers is None or elements < _SHARED_ELEMENTS else workers.map

        def reduce(i: int) -> Moments:
            each = self._layout.reductions[i]
            x = tensors[each.tensor]
            return channel_moments(x, each.channel_axis, _real(each, x.shape, masks))

        return list(run(reduce, self._others))

    def _relate(self, numbers: Floats, dots: Floats) -> tuple[Floats, Floats]:
        """residual_ratio and cosine (N, A) of all adds, from the moments (N, 7, S) and dot products (N, A)."""
        count, mean, m2 = numbers[:, :3].take(self._sides, axis=2).swapaxes(0, 1)
        l2 = np.sqrt(m2 + count * mean**2)
        adds = dots.shape[1]
        above, below = np.empty((2, 2, *dots.shape))
        above[0], above[1] = l2[:, adds:], dots
        below[0] = l2[:, :adds]
        np.multiply(below[0], above[0], out=below[1])
        related = np.full(above.shape, np.nan)
        np.divide(above, below, out=related, where=below > 0)
        return related[0], related[1]


def _real(reduction: Reduction, shape: tuple[int, ...], masks: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.bool_] | None:
    """Which elements of a tensor are of tokens, bool (N, M) over all axes but the first and that of the channels; None for all."""
    if reduction.mask is None:
        return None
    mask, channel_axis = masks[reduction.mask], reduction.channel_axis % len(shape)
    if mask.all():
        return None
    apart = [len(mask)] + [mask.shape[1] if axis == reduction.mask_axis else 1 for axis in range(1, len(shape))]
    others = [1 if axis == channel_axis else extent for axis, extent in enumerate(shape)]
    return np.broadcast_to(mask.reshape(apart), others).reshape(len(mask), -1)


class _Channels:
    """The moments by channel of one batch, views of what the run handed out; holds no activations."""

    def __init__(
        self, layout: SideLayout, places: Sequence[_Place | None], others: Mapping[int, Moments], listed: Sequence[Floats]
    ) -> None:
        self._layout, self._places, self._others, self._listed = layout, places, others, listed

    def of(self, row: int) -> Moments:
        """Moments (N, C) of a row of the layout."""
        reduction = self._layout.reduction_of[row]
        place = self._places[reduction]
        if place is None:
            return self._others[reduction]
        values = self._listed[place.observer]
        return Moments(*values.reshape(len(values), place.rows, FIELDS, -1)[:, place.row].swapaxes(0, 1))


def summary(moments: Moments, row: int | tuple[int, ...]) -> dict[str, float | int | None]:
    """The statistics of one group of elements as the API names them; null where they are undefined."""
    return _summaries(Moments(*(np.array([getattr(moments, field)[row]]) for field in _FIELDS)))[0]


def _summaries(moments: Moments) -> list[dict[str, float | int | None]]:
    """The same of each of G groups, fields (G,): all at once, numbers one by one cost several times as much."""
    return [
        {
            "count": count,
            "mean": mean,
            "var": var,
            "std": std,
            "min": low,
            "max": high,
            "l2": l2,
            "zeros": zeros,
            "nonfinite": nonfinite,
        }
        for count, mean, var, std, low, high, l2, zeros, nonfinite in zip(
            moments.count.astype(int).tolist(), *_statistics(moments), moments.nonfinite.astype(int).tolist(), strict=True
        )
    ]


def _statistics(moments: Moments) -> list[list[float | None]]:
    """mean, var, std, min, max, l2 and zeros of G groups, each a list of G; None where they are undefined."""
    undefined = (moments.nonfinite > 0) | (moments.count == 0)
    var = moments.var
    zeros = moments.zeros / np.maximum(moments.count, 1)
    values = np.array([moments.mean, var, np.sqrt(var), moments.minimum, moments.maximum, moments.l2, zeros])
    if not undefined.any():
        return values.tolist()  # type: ignore[no-any-return]  # a list of lists of float
    defined = values.astype(object)
    defined[:, undefined] = None
    return defined.tolist()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SampleStatistics:
    """The statistics of one sample of a batch, as the API shows them."""

    batch: BatchStatistics
    index: int

    def describe(self, layers: Sequence[Layer], *, channels: bool) -> list[dict[str, Any]]:
        """The chosen layers in the given order; `channels` adds a list along the channel axis to every statistic."""
        layout = self.batch.layout
        rows = [layout.row_of[layer.layer, side] for layer in layers for side in layer.tensors]
        sides: list[dict[str, Any]] = _summaries(self._of_sample(self.batch.pooled, np.array(rows, int)))
        if channels:
            for row, side in zip(rows, sides, strict=True):
                side["channels"] = _describe_channels(self._of_sample(self.batch.channels(row)))
        relations = np.array([self.batch.residual_ratio[self.index], self.batch.cosine[self.index]])
        known = relations.astype(object)
        known[~np.isfinite(relations)] = None
        ratios, cosines = known.tolist()
        described, found = [], iter(sides)
        for layer in layers:
            each: dict[str, Any] = {"layer": layer.layer, "kind": layer.kind}
            each |= {name: next(found) for name in layer.tensors}
            if layer.kind == _RESIDUAL_ADD:
                add = layout.add_of[layer.layer]
                each["residual_ratio"], each["cosine"] = ratios[add], cosines[add]
            described.append(each)
        return described

    def _of_sample(self, moments: Moments, chosen: NDArray[np.intp] | slice = slice(None)) -> Moments:
        return Moments(*(getattr(moments, field)[self.index][chosen] for field in _FIELDS))


def _describe_channels(moments: Moments) -> dict[str, list[Any]]:
    """The statistics of the channels (C,) of one side, without their count."""
    names = ("mean", "var", "std", "min", "max", "l2", "zeros")
    return {**dict(zip(names, _statistics(moments), strict=True)), "nonfinite": moments.nonfinite.astype(int).tolist()}
