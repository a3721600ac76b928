"""Traffic of a small made-up model: a norm and a residual add, with random activations in place of runs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.artifact import Layer
from models.statistics.layers import BatchReducer, BatchStatistics, RunOutputs, SideLayout
from service.statistics.series import Series
from service.statistics.traffic import TrafficStatistics

Arrays = dict[str, NDArray[np.float32]]


def _layer(name: str, kind: str, tensors: dict[str, str]) -> Layer:
    nothing = dict.fromkeys(("shape", "epsilon", "gamma", "beta"))
    return Layer.model_validate({"layer": name, "kind": kind, "channel_axis": 1, "tensors": tensors, **nothing})


LAYOUT = SideLayout(
    (
        _layer("norm", "batch_norm", {"before": "a", "after": "b"}),
        _layer("add", "residual_add", {"identity": "b", "residual": "f", "sum": "s"}),
    )
)
SERIES = Series("made", "1", "0" * 64, LAYOUT)
TENSORS = {0: "a", 1: "b", 2: "b", 3: "f", 4: "s"}
"""Row of the layout -> tensor."""
CHANNELS = 3


def activations(n: int, seed: int, *, offset: float = 0.0) -> Arrays:
    """Tensors (n, 3, 4) of n requests."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: (offset + rng.uniform(0.5, 2, (n, 1, 1)) * rng.standard_normal((n, CHANNELS, 4))).astype(np.float32) for name in "abf"
    }
    tensors["s"] = tensors["b"] + tensors["f"]
    return tensors


def reduced(tensors: Arrays) -> BatchStatistics:
    """The statistics of these activations."""
    return BatchReducer(LAYOUT).reduce(RunOutputs(tensors), {"input": tensors["a"]})


def batch(n: int, seed: int, *, offset: float = 0.0) -> BatchStatistics:
    """The statistics of n random requests."""
    return reduced(activations(n, seed, offset=offset))


@dataclass
class Clock:
    """A time that moves only when it is told to."""

    now: float = 1_800_000_000.0  # a whole hour, and a whole day but for 8 hours

    def __call__(self) -> float:
        return self.now


def serve(traffic: TrafficStatistics, n: int, seed: int, *, offset: float = 0.0) -> None:
    """Counts n requests, all of them sampled."""
    traffic.add(batch(n, seed, offset=offset), channels=traffic.wants_channels())
