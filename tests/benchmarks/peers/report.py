"""What was measured -> the tables and the targets; says met or not met, and asserts nothing."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.benchmarks.peers.arrangement import Arrangement
from tests.benchmarks.peers.limit import Limit
from tests.benchmarks.peers.points import Work
from tests.benchmarks.peers.wrk import Load

_PLAIN = "NormScope, no statistics"


@dataclass(frozen=True)
class Measurement:
    """One system: the loads of its points and its memory in MB, for each round."""

    system: str
    arrangement: Arrangement
    rounds: list[tuple[list[Load], float]]

    def median(self, point: int, value: Callable[[Load], float]) -> float:
        """Over the rounds, at one number of connections."""
        return statistics.median(value(loads[point]) for loads, _ in self.rounds)

    @property
    def errors(self) -> int:
        """Refused or broken requests in all rounds."""
        return sum(load.refused + load.broken for loads, _ in self.rounds for load in loads)

    @property
    def memory_mb(self) -> float:
        return statistics.median(memory for _, memory in self.rounds)


def print_table(work: Work, results: Iterable[Measurement], limits: list[Limit]) -> None:
    """One row for each system, three columns for each number of connections; `!` marks a run with errors."""
    columns = [f"{what}, {count}" for count in work.connections for what in ("req/s", "p50 ms", "p99 ms")]
    print(f"\n{work.model}: requests per second, p50 and p99 by number of connections; PSS of the process tree")
    print("| system | " + " | ".join(columns) + " | MB | errors | processes x threads |")
    print("| --- |" + " --- |" * (len(columns) + 3))
    best = max(limits, key=lambda limit: limit.per_second)
    fastest = f"{statistics.median(limit.per_second for limit in limits):.0f}"
    p50_ms = f"{statistics.median(limit.p50_ms for limit in limits):.2f}"
    cells = ["", p50_ms, "", *[""] * (len(columns) - 6), fastest, "", ""]
    print(f"| in process, batches of {best.batch_size} | " + " | ".join(cells) + f" | | | {best.arrangement} |")
    for result in results:
        cells = []
        for point in range(len(work.connections)):
            cells.append(f"{result.median(point, lambda load: load.per_second):.0f}")
            cells.append(f"{result.median(point, lambda load: load.p50_ms):.2f}")
            cells.append(f"{result.median(point, lambda load: load.p99_ms):.2f}")
        errors = f"{result.errors} !" if result.errors else "0"
        arrangement = "as shipped" if result.system.startswith("NormScope") else str(result.arrangement)
        print(f"| {result.system} | " + " | ".join(cells) + f" | {result.memory_mb:.0f} | {errors} | {arrangement} |")


def print_targets(work: Work, results: list[Measurement], limits: list[Limit]) -> None:
    """The ratios that the project aims at, each the median over the rounds, for NormScope without statistics."""
    own = next((result for result in results if result.system == _PLAIN), None)
    if own is None:
        return
    peers = [result for result in results if not result.system.startswith("NormScope")]
    densest = len(work.connections) - 1
    speeds = [loads[densest].per_second for loads, _ in own.rounds]
    print(f"\n{work.model}, targets for NormScope without statistics:")
    at = f"throughput at {work.connections[densest]} connections"
    if peers:
        best = [max(peer.rounds[i][0][densest].per_second for peer in peers) for i in range(len(speeds))]
        _print_target(f"{at} / best peer", _ratio(speeds, best), at_least=2 if work.model == "encoder" else None)
    share = _ratio(speeds, [limit.per_second for limit in limits])
    _print_target(f"{at} / in process", share, at_least=0.7 if work.model == "encoder" else 0.97)
    alone = _ratio([loads[0].p50_ms for loads, _ in own.rounds], [limit.p50_ms for limit in limits])
    _print_target("p50 at 1 connection / in process", alone, at_most=2 if work.model == "encoder" else None)


def _ratio(values: list[float], bases: list[float]) -> float:
    return statistics.median(value / base for value, base in zip(values, bases, strict=True))


def _print_target(name: str, ratio: float, at_least: float | None = None, at_most: float | None = None) -> None:
    if at_least is not None:
        verdict = f"at least {at_least:g}: {'met' if ratio >= at_least else 'NOT met'}"
    elif at_most is not None:
        verdict = f"at most {at_most:g}: {'met' if ratio <= at_most else 'NOT met'}"
    else:
        verdict = "no target"
    print(f"- {name}: {ratio:.2f} ({verdict})")
