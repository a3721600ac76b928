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
from models.instrument.observers import FIELDS, RELATIONS, ChannelList, Observer, Pair, Reduction
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
        channels: the same by channel; None where they were not asked for.
    """

    tensors: Mapping[str, Activations]
    summary: Floats | None = None
    channels: ChannelList | None = None


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
    """Where an observer's numbers of one reduction are: from `start` in the summary; by channel, in row `row` of `rows`."""

    observer: int
    row: int
    rows: int
    start: int


class BatchReducer:
    """Makes the statistics of batches: reads the numbers of observers, and reduces the tensors that none observes."""

    def __init__(self, layout: SideLayout, observers: Sequence[Observer] = ()) -> None:
        self._layout = layout
        places: dict[Reduction, _Place] = {}
        related: dict[Pair, int] = {}
        end = 0
        for i, observer in enumerate(observers):
            for row, reduction in enumerate(observer.rows):
                places.setdefault(reduction, _Place(i, row, len(observer.rows), end))
                end += FIELDS
            if observer.pair:
                related[observer.pair] = end
            end += RELATIONS
        self._places = [places.get(each) for each in layout.reductions]
        self._others = [i for i, place in enumerate(self._places) if place is None]
        nowhere = [0] * FIELDS  # of the summary; overwritten by what numpy finds
        columns = [nowhere if place is None else list(range(place.start, place.start + FIELDS)) for place in self._places]
        self._columns = np.array([columns[i] for i in layout.reduction_of], int).reshape(-1, FIELDS).T
        self._other_rows = [(row, i) for row, i in enumerate(layout.reduction_of) if i in self._others]
        self._related = np.array([related.get(pair, 0) for pair in layout.pairs], int) + np.array([[0], [1]])
        self._other_pairs = [(i, pair) for i, pair in enumerate(layout.pairs) if pair not in related]
        self._masks = {name for i in self._others if (name := layout.reductions[i].mask)}

    def reduce(self, outputs: RunOutputs, inputs: Mapping[str, NDArray[Any]], workers: Executor | None = None) -> BatchStatistics:
        """Computes all statistics of a run.

        Args:
            outputs: of the run.
            inputs: of the run; the masks of the layers are among them.
            workers: threads that share the tensors among them; numpy leaves the interpreter free for most of the work.
        """
        first = next(iter(inputs.values()))
        n = len(first) if first.ndim else 1  # of a model without batch, whose layers are none
        observed = np.zeros((n, 2)) if outputs.summary is None else outputs.summary
        numbers = observed.take(self._columns, axis=1)  # (N, 7, S)
        related = observed.take(self._related, axis=1)  # (N, 2, A)
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
                dot = sample_dot(x, f, real, pair.identity.channel_axis)
                sides = [self._layout.row_of[self._layout.adds[i].layer, side] for side in ("identity", "residual")]
                related[:, 0, i], related[:, 1, i] = _relate(numbers[:, :3, sides], dot)
        pooled = Moments(*numbers.swapaxes(0, 1))
        channels = _Channels(self._layout, self._places, others, outputs.channels, pooled.count)
        return BatchStatistics(self._layout, pooled, related[:, 0], related[:, 1], channels.of)

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


def _relate(sides: Floats, dot: Floats) -> tuple[Floats, Floats]:
    """residual_ratio and cosine (N,) of one add, from count, mean and m2 of both sides (N, 3, 2) and their dot product."""
    count, mean, m2 = sides.swapaxes(0, 1)
    of_identity, of_residual = np.sqrt(m2 + count * mean**2).T
    related = np.full((2, len(dot)), np.nan)
    np.divide(of_residual, of_identity, out=related[0], where=of_identity > 0)
    both = of_identity * of_residual
    np.divide(dot, both, out=related[1], where=both > 0)
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
    """The moments by channel of one batch, made of what the run listed when they are asked for; holds no activations."""

    def __init__(
        self,
        layout: SideLayout,
        places: Sequence[_Place | None],
        others: Mapping[int, Moments],
        listed: ChannelList | None,
        count: Floats,
    ) -> None:
        self._layout, self._places, self._others, self._listed, self._count = layout, places, others, listed, count

    def of(self, row: int) -> Moments:
        """Moments (N, C) of a row of the layout."""
        reduction = self._layout.reduction_of[row]
        place = self._places[reduction]
        if place is None:
            return self._others[reduction]
        if self._listed is None:
            raise ValueError("the run was not asked for its channels")
        start, end = self._listed.columns[place.observer : place.observer + 2].tolist()
        channels = (end - start) // place.rows
        start += place.row * channels
        values = self._listed.values[:, :, start : start + channels].swapaxes(0, 1).astype(np.float64)
        mean, std, minimum, maximum, zeros, nonfinite = values
        count = np.broadcast_to(self._count[:, row, None] / max(channels, 1), mean.shape)
        return Moments(count, mean, count * std**2, minimum, maximum, zeros, nonfinite)


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
