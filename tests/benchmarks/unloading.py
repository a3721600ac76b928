"""What models leave behind: `python -m tests.benchmarks.unloading` prints memory after each loading, running and unloading.

MB (1e6 bytes) of the process, its share of what several hold (PSS), in a process that serves nothing else. Linux alone.
"""

import argparse
import asyncio
from pathlib import Path

from models.artifact import load_artifact
from service.engine.inputs import InputReader, TensorInput
from service.engine.repository import Repository
from service.settings import Settings
from tests.benchmarks.peers.classifier import SHIPPED
from tests.memory import held_mb, in_fresh_process

_INPUTS = 4  # of a request


def measure(folder: Path, name: str, rounds: int) -> list[tuple[float, float, float]]:
    """Of each round, MB after loading, after a request without and one with statistics, and after unloading."""
    repository = Repository(Settings(model_repository=folder))
    artifact = load_artifact(folder / name / "1")
    rows = [InputReader(artifact, 0).example()] * _INPUTS
    held = []
    for _ in range(rounds):
        repository.load(name)
        loaded_mb = held_mb()
        _predict(repository, name, rows)
        ran_mb = held_mb()
        repository.unload(name)
        held.append((loaded_mb, ran_mb, held_mb()))
    repository.close()
    return held


def _predict(repository: Repository, name: str, rows: list[TensorInput]) -> None:
    with repository.reserve(name) as served:
        for statistics in (False, True):
            asyncio.run(served.predict(rows, statistics=statistics))


def main() -> None:
    """Prints one row for each model and round."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.unloading", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["encoder", "resnet50"])
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    print("| model, round | loaded, MB | has run, MB | unloaded, MB |\n| --- | --- | --- | --- |")
    for name in arguments.models:
        for i, held in enumerate(in_fresh_process(measure, SHIPPED, name, arguments.rounds)):
            print(f"| {name}, {i + 1} | " + " | ".join(f"{each:.0f}" for each in held) + " |", flush=True)


if __name__ == "__main__":
    main()
