"""The limit: the same work in one process without HTTP, as fast as batch size and threads allow. Prints JSON for the benchmark.

`python -m tests.benchmarks.peers.limit encoder 10` runs in a process of its own, as the servers do.
"""

import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

from tests.benchmarks.peers import inputs
from tests.benchmarks.peers.arrangement import Arrangement
from tests.benchmarks.peers.classifier import Classifier, Item
from tests.benchmarks.stillness import undisturbed

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_CLIENTS = 64  # texts are ordered by length among as many as may wait at a server under the densest load
_SEARCH_S = 0.7

# one run with two threads, or two runs at once with one thread each
_ARRANGEMENTS = (Arrangement(1, 2), Arrangement(1, 2, spinning=True), Arrangement(2, 1))


@dataclass(frozen=True)
class Limit:
    """The fastest way, and the p50 of one input at a time."""

    per_second: float
    p50_ms: float
    batch_size: int
    arrangement: str


def measure(model: str, seconds: float) -> Limit:
    """The limit of a model, measured in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.peers.limit", model, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Limit(**json.loads(done.stdout))


def _batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """All items in batches; texts by length within the window that a server could see."""
    ordered: list[Item] = []
    for first in range(0, len(items), _CLIENTS):
        ordered += sorted(items[first : first + _CLIENTS], key=lambda item: len(item) if isinstance(item, str) else 0)
    ordered *= -(-size // len(ordered))  # fewer photos than a batch holds: again from the start
    return [ordered[first : first + size] for first in range(0, len(ordered), size)]


def _throughput(classifier: Classifier, runs: int, batches: Sequence[Sequence[Item]], seconds: float) -> float:
    """Inputs in a second, `runs` batches at once."""
    counts = [0] * runs
    end = time.perf_counter() + seconds

    def work(index: int) -> None:
        for batch in itertools.islice(itertools.cycle(batches), index * len(batches) // runs, None):
            classifier(batch)
            counts[index] += len(batch)
            if time.perf_counter() >= end:
                return

    start = time.perf_counter()
    workers = [threading.Thread(target=work, args=(index,)) for index in range(runs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - start)


def _p50_ms(classifier: Classifier, items: Sequence[Item], seconds: float) -> float:
    times = []
    end = time.perf_counter() + seconds
    for item in itertools.cycle(items):
        start = time.perf_counter()
        classifier([item])
        times.append(time.perf_counter() - start)
        if time.perf_counter() >= end:
            break
    return statistics.median(times) * 1000


def _measure_here(model: str, seconds: float) -> Limit:
    items: Sequence[Item] = inputs.photos() if model == "resnet50" else inputs.texts()
    classifiers = {arrangement: Classifier(model, arrangement) for arrangement in _ARRANGEMENTS}
    p50_ms = min(undisturbed(partial(_p50_ms, classifier, items, seconds / 4)) for classifier in classifiers.values())
    speeds = {
        (arrangement, size): undisturbed(partial(_throughput, classifier, arrangement.workers, _batches(items, size), _SEARCH_S))
        for arrangement, classifier in classifiers.items()
        for size in _BATCH_SIZES
    }
    arrangement, size = max(speeds, key=lambda key: speeds[key])
    fastest = partial(_throughput, classifiers[arrangement], arrangement.workers, _batches(items, size), seconds)
    per_second = undisturbed(fastest)
    spinning = ", spinning" if arrangement.spinning else ""
    return Limit(per_second, p50_ms, size, f"{arrangement.workers} x {arrangement.threads} threads{spinning}")


if __name__ == "__main__":
    print(json.dumps(asdict(_measure_here(sys.argv[1], float(sys.argv[2])))))
