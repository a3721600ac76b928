"""Statistics of a batch: the tapped tensors of one run in, for each sample and layer the statistics of every side out.

A batch never mixes its samples: row i of every array below is sample i alone.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.artifact import Layer
from service.statistics.moments import Activations, Floats, Moments, channel_moments, sample_dot

_RESIDUAL_ADD = "residual_add"
_SHARED_ELEMENTS = 1 << 20  # of a run from which on several threads pay


class Reduction(NamedTuple):
    """One tensor reduced in one way; several sides may ask for the same."""

    tensor: str
    channel_axis: int
    mask: str | None


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
        return list(dict.fromkeys(Reduction(layer.tensors[side], layer.channel_axis, layer.mask) for layer, side in self.rows))

    @cached_property
    def reduction_of(self) -> list[int]:
        """For each row, the index of its reduction."""
        index = {each: i for i, each in enumerate(self.reductions)}
        return [index[Reduction(layer.tensors[side], layer.channel_axis, layer.mask)] for layer, side in self.rows]

    @cached_property
    def adds(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.kind == _RESIDUAL_ADD]

    @cached_property
    def row_of(self) -> dict[tuple[str, str], int]:
        return {(layer.layer, side): i for i, (layer, side) in enumerate(self.rows)}

    @cached_property
    def add_of(self) -> dict[str, int]:
        return {layer.layer: i for i, layer in enumerate(self.adds)}


@dataclass(frozen=True)
class BatchStatistics:
    """Statistics of N samples over S rows (layer and side) and A residual adds.

    Attributes:
        layout: the order of rows.
        joined: of every channel of every reduction, (N, sum of C).
        columns: for each row, where its channels lie in `joined`.
        pooled: over the channels: (N, S).
        residual_ratio: l2(F(x)) / l2(x), (N, A); NaN where l2(x) is 0 or a side is not finite.
        cosine: of F(x) and x, (N, A); NaN where either norm is 0 or a side is not finite.
    """

    layout: SideLayout
    joined: Moments
    columns: list[slice]
    pooled: Moments
    residual_ratio: Floats
    cosine: Floats

    def __len__(self) -> int:
        return len(self.residual_ratio)

    def channels(self, row: int) -> Moments:
        """Of the channels of one row: (N, C)."""
        return self.joined.columns(self.columns[row])

    def sample(self, i: int) -> "SampleStatistics":
        return SampleStatistics(self, i)


def batch_statistics(
    layout: SideLayout, tensors: Mapping[str, Activations], inputs: Mapping[str, NDArray[Any]], workers: Executor | None = None
) -> BatchStatistics:
    """Computes all statistics of a run.

    Args:
        layout: the layers to watch.
        tensors: name -> activation (N, ...) of every tensor that the layers name.
        inputs: the inputs of the run; the masks of the layers are among them.
        workers: threads that share the tensors among them; numpy leaves the interpreter free for most of the work.
    """
    elements = sum(tensor.size for tensor in tensors.values())
    run = map if workers is None or elements < _SHARED_ELEMENTS else workers.map
    masks = {name: inputs[name].astype(bool) for layer in layout.layers if (name := layer.mask)}

    def reduce(each: Reduction) -> Moments:
        return channel_moments(tensors[each.tensor], each.channel_axis, masks[each.mask] if each.mask else None)

    parts = list(run(reduce, layout.reductions))
    ends = np.cumsum([part.mean.shape[1] for part in parts])
    starts = np.concatenate([[0], ends[:-1]])
    joined = Moments.join(parts)
    pooled = joined.pool_segments(starts).columns(layout.reduction_of)
    columns = [slice(starts[i], ends[i]) for i in layout.reduction_of]
    ratio, cosine = _pair_statistics(layout, tensors, masks, pooled.l2)
    return BatchStatistics(layout, joined, columns, pooled, ratio, cosine)


def _pair_statistics(
    layout: SideLayout, tensors: Mapping[str, Activations], masks: Mapping[str, NDArray[np.bool_]], l2: Floats
) -> tuple[Floats, Floats]:
    """residual_ratio and cosine (N, A) of all adds; l2 (N, S)."""
    identity = l2[:, [layout.row_of[layer.layer, "identity"] for layer in layout.adds]]
    residual = l2[:, [layout.row_of[layer.layer, "residual"] for layer in layout.adds]]
    dots = np.zeros_like(identity)
    for i, layer in enumerate(layout.adds):
        x, f = tensors[layer.tensors["identity"]], tensors[layer.tensors["residual"]]
        dots[:, i] = sample_dot(x, f, masks[layer.mask] if layer.mask else None)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(identity > 0, residual / identity, np.nan)
        product = identity * residual
        return ratio, np.where(product > 0, dots / product, np.nan)


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
