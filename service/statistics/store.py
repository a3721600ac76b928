"""Statistics over all traffic of a model since it was loaded, in memory and of constant size. Merges batches, answers queries."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.artifact import Layer
from models.statistics.layers import BatchStatistics, SideLayout, summary
from models.statistics.moments import Floats, Moments


@dataclass
class _Range:
    """Mean, minimum and maximum of per-request values, for many quantities at once (fields of one shape); NaN is left out."""

    count: Floats
    total: Floats
    minimum: Floats
    maximum: Floats

    @classmethod
    def empty(cls, size: int) -> "_Range":
        return cls(np.zeros(size), np.zeros(size), np.full(size, np.inf), np.full(size, -np.inf))

    def add(self, values: Floats) -> None:
        """Takes values (N, size)."""
        known = np.isfinite(values)
        self.count += known.sum(0)
        self.total += np.where(known, values, 0).sum(0)
        self.minimum = np.minimum(self.minimum, np.where(known, values, np.inf).min(0))
        self.maximum = np.maximum(self.maximum, np.where(known, values, -np.inf).max(0))

    def describe(self, i: int) -> dict[str, float | None]:
        if not self.count[i]:
            return {"mean": None, "min": None, "max": None}
        mean = float(self.total[i] / self.count[i])
        return {"mean": mean, "min": float(self.minimum[i]), "max": float(self.maximum[i])}


@dataclass
class TrafficStatistics:
    """What all inputs so far looked like inside one model.

    mean, var, std and zeros are pooled by count, min and max are extremes; l2, residual_ratio and cosine are the mean, min and max
    of the values of the single requests. A sample with NaN or infinities on a side counts there in `nonfinite` only.
    Every input counts as a request: a call with three photos counts three times.
    """

    layout: SideLayout
    requests: int = 0
    sampled: int = 0
    _moments: Moments = field(init=False)
    _nonfinite: Floats = field(init=False)
    _l2: _Range = field(init=False)
    _residual_ratio: _Range = field(init=False)
    _cosine: _Range = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        rows, adds = len(self.layout.rows), len(self.layout.adds)
        self._moments = Moments.empty(rows)
        self._nonfinite = np.zeros(rows)
        self._l2, self._residual_ratio, self._cosine = _Range.empty(rows), _Range.empty(adds), _Range.empty(adds)

    def count(self, inputs: int) -> None:
        """Counts inputs that were served, whether or not their statistics are taken."""
        with self._lock:
            self.requests += inputs

    def add(self, batch: BatchStatistics) -> None:
        """Merges all samples of a batch; safe to call from several threads."""
        pooled = batch.pooled
        bad = pooled.nonfinite > 0  # (N, S)
        clean = Moments(
            count=np.where(bad, 0, pooled.count),
            mean=np.where(bad, 0, pooled.mean),
            m2=np.where(bad, 0, pooled.m2),
            minimum=np.where(bad, np.inf, pooled.minimum),
            maximum=np.where(bad, -np.inf, pooled.maximum),
            zeros=np.where(bad, 0, pooled.zeros),
            nonfinite=np.zeros_like(pooled.nonfinite),
        )
        merged = clean.pool(axis=0)
        with self._lock:
            self.sampled += len(batch)
            self._moments = self._moments.merge(merged)
            self._nonfinite += pooled.nonfinite.sum(0)
            self._l2.add(np.where(bad, np.nan, pooled.l2))
            self._residual_ratio.add(batch.residual_ratio)
            self._cosine.add(batch.cosine)

    def describe(self, layers: Sequence[Layer]) -> dict[str, Any]:
        """The totals of the chosen layers as the API shows them."""
        with self._lock:
            return {
                "requests": self.requests,
                "sampled": self.sampled,
                "layers": [self._layer(layer) for layer in layers],
            }

    def _layer(self, layer: Layer) -> dict[str, Any]:
        described: dict[str, Any] = {"layer": layer.layer, "kind": layer.kind}
        for side in layer.tensors:
            row = self.layout.row_of[layer.layer, side]
            described[side] = summary(self._moments, row) | {
                "l2": self._l2.describe(row),
                "nonfinite": int(self._nonfinite[row]),
            }
        if layer.kind == "residual_add":
            add = self.layout.add_of[layer.layer]
            described["residual_ratio"] = self._residual_ratio.describe(add)
            described["cosine"] = self._cosine.describe(add)
        return described
