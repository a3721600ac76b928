"""Statistics of a batch: the tapped tensors of one run in, for each sample and layer the statistics of every side out.

A batch never mixes its samples: row i of every array below is sample i alone.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.artifact import Layer
from service.statistics.moments import Activations, Floats, Moments, channel_moments, sample_dot

_RESIDUAL_ADD = "residual_add"


@dataclass(frozen=True)
class SideLayout:
    """The order of rows that all statistics of a model share: one row for each (layer, side), one for each residual add."""

    layers: tuple[Layer, ...]

    @cached_property
    def rows(self) -> list[tuple[Layer, str]]:
        return [(layer, side) for layer in self.layers for side in layer.tensors]

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
        channels: for each row the moments of (N, C).
        pooled: over the channels: (N, S).
        residual_ratio: l2(F(x)) / l2(x), (N, A); NaN where l2(x) is 0 or a side is not finite.
        cosine: of F(x) and x, (N, A); NaN where either norm is 0 or a side is not finite.
    """

    layout: SideLayout
    channels: list[Moments]
    pooled: Moments
    residual_ratio: Floats
    cosine: Floats

    def __len__(self) -> int:
        return len(self.residual_ratio)

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
    run = map if workers is None else workers.map
    masks = {name: inputs[name].astype(bool) for layer in layout.layers if (name := layer.mask)}
    # the sum of an add is often the input of the norm after it: each tensor is reduced once
    axes = {layer.tensors[side]: (layer.channel_axis, layer.mask) for layer, side in layout.rows}

    def reduce(name: str) -> Moments:
        channel_axis, mask = axes[name]
        return channel_moments(tensors[name], channel_axis, masks[mask] if mask else None)

    by_tensor = dict(zip(axes, run(reduce, axes), strict=True))
    channels = [by_tensor[layer.tensors[side]] for layer, side in layout.rows]
    pooled_by_tensor = {name: moments.pool(axis=1) for name, moments in by_tensor.items()}
    pooled = Moments.stack([pooled_by_tensor[layer.tensors[side]] for layer, side in layout.rows], axis=1)

    def multiply(layer: Layer) -> Floats:
        mask = masks[layer.mask] if layer.mask else None
        return sample_dot(tensors[layer.tensors["identity"]], tensors[layer.tensors["residual"]], mask)

    dots = list(run(multiply, layout.adds))
    l2 = pooled.l2
    identity = l2[:, [layout.row_of[layer.layer, "identity"] for layer in layout.adds]]
    residual = l2[:, [layout.row_of[layer.layer, "residual"] for layer in layout.adds]]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(identity > 0, residual / identity, np.nan)
        product = identity * residual
        cosine = np.where(product > 0, np.stack(dots, axis=1) / product, np.nan) if dots else product
    return BatchStatistics(layout, channels, pooled, ratio, cosine)


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
        moments = self.batch.channels[row]
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
