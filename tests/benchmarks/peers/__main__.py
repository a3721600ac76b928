"""NormScope beside its peers: `python -m tests.benchmarks.peers` prints requests per second, latency and memory, and the targets.

Every system serves the same artifact, alone, under the same load generator (wrk). In every round each is started anew, checked
for right answers, warmed up and measured, one after the other, so that a noisy machine disturbs all alike; the tables show
medians of the rounds, the targets medians of the ratios within a round. A peer with several arrangements of processes and
threads is measured with the one that is fastest under the densest load, found before the first round.
"""

import argparse
import sys
from collections.abc import Sequence

from tests.benchmarks.peers import inputs, overload
from tests.benchmarks.peers.arrangement import Arrangement
from tests.benchmarks.peers.classifier import Classifier
from tests.benchmarks.peers.limit import Limit, measure
from tests.benchmarks.peers.points import Work, WrongAnswerError, measured
from tests.benchmarks.peers.report import Measurement, print_table, print_targets
from tests.benchmarks.peers.systems import SYSTEMS, System
from tests.benchmarks.peers.wrk import check_installed

_ALONE = Arrangement(workers=1, threads=1)


def works(models: Sequence[str]) -> list[Work]:
    """What is measured: texts in, label out at 1, 16 and 64 connections; JPEG in, label out at 1 and 8."""
    found = []
    for model in models:
        classifier = Classifier(model, _ALONE)
        items = inputs.texts() if model == "encoder" else inputs.photos()
        connections = (1, 16, 64) if model == "encoder" else (1, 8)
        found.append(Work(model, items, [classifier([item])[0] for item in items], connections))
    return found


def choose(system: System, work: Work, seconds: int) -> Arrangement | None:
    """The arrangement that is fastest under the densest load; None where none serves."""
    if len(system.arrangements) == 1:
        return system.arrangements[0]
    densest = work.connections[-1:]
    speeds = {}
    for arrangement in system.arrangements:
        try:
            (load,), _ = measured(system, work, arrangement, densest, seconds)
        except WrongAnswerError as error:
            _log(f"left out: {system.name}, {arrangement}: {error}")
            continue
        speeds[arrangement] = 0.0 if load.refused or load.broken else load.per_second
        _log(f"{work.model}: {system.name}, {arrangement}: {load.per_second:.0f}/s")
    return max(speeds, key=lambda arrangement: speeds[arrangement], default=None)


def compare(
    work: Work, systems: Sequence[System], *, rounds: int, seconds: int, search: bool
) -> tuple[list[Measurement], list[Limit]]:
    """All rounds of one model: one measurement for each system, one limit for each round."""
    results: dict[str, Measurement] = {}
    for system in systems:
        chosen = choose(system, work, min(3, seconds)) if search else system.arrangements[0]
        if chosen is not None:
            results[system.name] = Measurement(system.name, chosen, [])
    limits: list[Limit] = []
    for number in range(1, rounds + 1):
        limits.append(measure(work.model, seconds))
        for system in (system for system in systems if system.name in results):
            result = results[system.name]
            try:
                one = measured(system, work, result.arrangement, work.connections, seconds)
            except WrongAnswerError as error:
                _log(f"left out: {error}")
                del results[system.name]
                continue
            result.rounds.append(one)
            _log(f"{work.model}, round {number}: {system.name}: {one[0][-1].per_second:.0f}/s")
    return list(results.values()), limits


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # the tables alone go to the standard output


def main() -> None:
    """Prints the tables and the targets of every model."""
    names = [system.name for system in SYSTEMS]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10, help="of each point")
    parser.add_argument("--models", nargs="+", choices=["encoder", "resnet50"], default=["encoder", "resnet50"])
    parser.add_argument("--systems", nargs="+", metavar="NAME", default=names, help=f"starts of names among: {', '.join(names)}")
    parser.add_argument("--no-search", action="store_true", help="take the first arrangement of every peer, not the fastest")
    parser.add_argument("--overload", action="store_true", help="only NormScope, at ten times its capacity")
    parser.add_argument("--overload-seconds", type=int, default=60)
    arguments = parser.parse_args()
    check_installed()
    systems = [system for system in SYSTEMS if system.name.lower().startswith(tuple(name.lower() for name in arguments.systems))]
    for work in works(arguments.models):
        if arguments.overload:
            overload.report(SYSTEMS[1], work, arguments.seconds, arguments.overload_seconds)
            continue
        results, limits = compare(work, systems, rounds=arguments.rounds, seconds=arguments.seconds, search=not arguments.no_search)
        print_table(work, results, limits)
        print_targets(work, results, limits)


if __name__ == "__main__":
    main()
