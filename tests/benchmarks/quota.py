"""Threads and spinning where less than the machine may be used: `python -m tests.benchmarks.quota` prints a table.

Each row is a process of its own that holds sessions of both models and runs one input at a time: one model alone, then both at
once, as a server does. The process is held to a number of cores by a quota of the control group where one can be made (as
containers are), else by its CPU affinity, which takes cores away but never stops a process for the rest of a period. Compared
are the sessions as NormScope makes them (threads by the quota, no spinning), the same threads spinning, and sessions with ONNX
Runtime's defaults (a thread for each core that it sees, spinning).
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.artifact import Artifact, load_artifact
from models.preprocessing import ImagePreprocessing
from service.engine.graph import prepare
from service.engine.session import Session
from tests.benchmarks.peers.classifier import SHIPPED
from tests.benchmarks.stillness import undisturbed

_MODELS = ("encoder", "resnet50")
_ARRANGEMENTS = ("as shipped", "spinning", "defaults of ONNX Runtime")
_TOKENS = 13
_PERIOD_US = 100_000
_CGROUP = Path("/sys/fs/cgroup")

Feed = dict[str, NDArray[Any]]


@contextmanager
def quota_group(cores: int) -> Iterator[Path | None]:
    """A control group with a quota of so many cores; None where none can be made."""
    folder = _make_group(cores)
    try:
        yield folder
    finally:
        if folder is not None:
            folder.rmdir()


def _make_group(cores: int) -> Path | None:
    version_1 = (_CGROUP / "cpu" / "cpu.cfs_quota_us").exists()
    folder = (_CGROUP / "cpu" if version_1 else _CGROUP) / f"normscope-quota-{os.getpid()}-{cores}"
    limits = (
        {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(cores * _PERIOD_US)}
        if version_1
        else {"cpu.max": f"{cores * _PERIOD_US} {_PERIOD_US}"}
    )
    try:
        folder.mkdir()
    except OSError:
        return None
    try:
        for name, value in limits.items():
            (folder / name).write_text(value)
    except OSError:  # the controller is not handed down
        folder.rmdir()
        return None
    return folder


def runner(model: str, arrangement: str, threads: int) -> Callable[[], object]:
    """One run of one input in a new session."""
    artifact = load_artifact(SHIPPED / model / "1")
    feed = _feed(artifact)
    if arrangement == "as shipped":
        session = Session(prepare(artifact), threads)
        return lambda: session.run(feed)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if arrangement == "spinning":
        options.intra_op_num_threads = threads
    plain = onnxruntime.InferenceSession(artifact.model_path, options, providers=["CPUExecutionProvider"])
    return lambda: plain.run(None, feed)


def _feed(artifact: Artifact) -> Feed:
    preprocessing = artifact.manifest.preprocessing
    names = [spec.name for spec in artifact.manifest.inputs]
    if isinstance(preprocessing, ImagePreprocessing):
        pixels = np.random.default_rng(0).integers(0, 256, (1, preprocessing.crop, preprocessing.crop, 3), dtype=np.uint8)
        return {names[0]: preprocessing.normalize(pixels)}
    tokens = np.arange(3, 3 + _TOKENS)[None]
    return {names[0]: tokens, names[1]: np.ones_like(tokens)}


def measure_here(arrangement: str, cores: int, seconds: float) -> dict[str, tuple[float, float]]:
    """{case: (runs in a second, p50 in ms)}, each model alone and both at once."""
    runs = {model: runner(model, arrangement, cores) for model in _MODELS}
    for run in runs.values():
        run()
    results = {}
    for together in (False, True):
        for group in [_MODELS] if together else [(model,) for model in _MODELS]:
            times: dict[str, list[float]] = {model: [] for model in group}
            workers = [threading.Thread(target=_loop, args=(runs[model], times[model], seconds)) for model in group]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            for model in group:
                case = f"{model}, {'both at once' if together else 'alone'}"
                results[case] = (len(times[model]) / sum(times[model]), statistics.median(times[model]) * 1000)
    return results


def _loop(run: Callable[[], object], times: list[float], seconds: float) -> None:
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        run()
        times.append(time.perf_counter() - start)


def main() -> None:
    """Prints one row for each number of cores and arrangement; with --inside, measures in this process and prints JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quota", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="of each case")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--inside", nargs=2, metavar=("ARRANGEMENT", "CORES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(measure_here(arguments.inside[0], int(arguments.inside[1]), arguments.seconds)))
        return
    cases = [f"{model}, {how}" for how in ("alone", "both at once") for model in _MODELS]
    header = "| cores | held by | sessions | " + " | ".join(f"{case}: runs/s, p50 ms" for case in cases) + " |"
    print(header + "\n| --- |" + " --- |" * (len(cases) + 2))
    for cores in arguments.cores:
        with quota_group(cores) as group:
            measured: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in _ARRANGEMENTS}
            for _, name in itertools.product(range(arguments.rounds), _ARRANGEMENTS):
                held = partial(_measure_held, name, cores, arguments.seconds, group)
                measured[name].append(undisturbed(held))
        for name, rounds in measured.items():
            cells = [
                f"{statistics.median(one[case][0] for one in rounds):.1f}, {statistics.median(one[case][1] for one in rounds):.2f}"
                for case in cases
            ]
            print(f"| {cores} | {'affinity' if group is None else 'quota'} | {name} | " + " | ".join(cells) + " |", flush=True)


def _measure_held(arrangement: str, cores: int, seconds: float, group: Path | None) -> dict[str, tuple[float, float]]:
    """The measurement in a process that may use only so many cores."""

    def hold() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))
        else:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

    command = [sys.executable, "-m", "tests.benchmarks.quota", "--seconds", str(seconds), "--inside", arrangement, str(cores)]
    done = subprocess.run(command, preexec_fn=hold, stdout=subprocess.PIPE, text=True, check=True)
    return {case: (float(speed), float(p50)) for case, (speed, p50) in json.loads(done.stdout).items()}


if __name__ == "__main__":
    main()
