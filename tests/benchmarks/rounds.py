"""Variants of one thing, timed so that a noisy machine disturbs them alike: callables in, ratios with their spread out."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Median, and first and third quartile, of one number for each round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        low, median, high = np.percentile(values, [25, 50, 75]).tolist()
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Times:
    """Seconds of each variant, one for each round."""

    seconds: Mapping[str, Sequence[float]]

    def ratio(self, name: str, base: str) -> Spread:
        """Of one variant to another in the same round."""
        return Spread.of([one / other for one, other in zip(self.seconds[name], self.seconds[base], strict=True)])

    def milliseconds(self, name: str) -> float:
        """The median."""
        return 1000 * float(np.median(self.seconds[name]))


def measure(compared: Mapping[str, Callable[[T], object]], inputs: Sequence[T], rounds: int) -> Times:
    """Times all variants one after the other in every round, each twice on the same input, of which the second run counts.

    Args:
        compared: the variants by name.
        inputs: what they take; the next one in every round, from the first again after the last.
        rounds: how many.
    """
    for run in compared.values():
        run(inputs[0])
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for number in range(rounds):
        given = inputs[number % len(inputs)]
        for name, run in compared.items():
            run(given)  # untimed: what another variant left in the caches, and its spinning threads, are not this one's cost
            start = time.perf_counter()
            run(given)
            seconds[name].append(time.perf_counter() - start)
    return Times(seconds)
