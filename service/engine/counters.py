"""Counters of one model version since it was loaded: how many requests and runs, and where their time went. Knows no HTTP."""

import threading
import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Duration:
    """How often something happened and how long it took in total, in nanoseconds."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True)
class BatchDurations:
    """Of all runs of one batch size: making the feed, running the graph, reading its outputs (with statistics)."""

    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()


@dataclass(frozen=True)
class CountersSnapshot:
    """All counters at one moment; requests may hold several inputs, inputs of several requests may share a run.

    Attributes:
        last_inference_ms: milliseconds since the epoch of the last run; 0 before the first.
        inference_count: inputs that were run.
        execution_count: runs.
        success: answered requests, from their acceptance to the answer.
        fail: requests that got an error.
        queue: of answered requests, the time in which nothing was done for them.
        compute_input: of answered requests (of each, the mean of its inputs), decoding or tokenizing and making the feeds.
        compute_infer: of answered requests, running the graph.
        compute_output: of answered requests, statistics and splitting.
        batches: batch size -> durations of its runs.
    """

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    batches: dict[int, BatchDurations] = field(default_factory=dict)


class Counters:
    """Safe to use from several threads; counting is on the path of every request, so it adds numbers and makes no objects."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_inference_ms = 0
        self._inputs = 0
        self._requests = [0, 0]  # answered, failed
        self._ns = dict.fromkeys(("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"), 0)
        self._batches: dict[int, list[int]] = {}  # size -> runs and nanoseconds of input, infer, output

    def count_run(self, size: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Counts one run of `size` inputs."""
        with self._lock:
            self._last_inference_ms = time.time_ns() // 1_000_000
            self._inputs += size
            batch = self._batches.setdefault(size, [0, 0, 0, 0])
            for i, value in enumerate((1, input_ns, infer_ns, output_ns)):
                batch[i] += value

    def count_success(self, total_ns: int, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Counts one answered request."""
        with self._lock:
            self._requests[0] += 1
            ns = self._ns
            ns["success"] += total_ns
            ns["queue"] += queue_ns
            ns["compute_input"] += input_ns
            ns["compute_infer"] += infer_ns
            ns["compute_output"] += output_ns

    def count_failure(self, ns: int) -> None:
        """Counts one request that got an error."""
        with self._lock:
            self._requests[1] += 1
            self._ns["fail"] += ns

    def snapshot(self) -> CountersSnapshot:
        """All counters at this moment."""
        with self._lock:
            answered, failed = self._requests
            durations = {name: Duration(failed if name == "fail" else answered, ns) for name, ns in self._ns.items()}
            batches = {
                size: BatchDurations(*(Duration(runs, ns) for ns in parts))
                for size, (runs, *parts) in sorted(self._batches.items())
            }
            return CountersSnapshot(
                last_inference_ms=self._last_inference_ms,
                inference_count=self._inputs,
                execution_count=sum(batch.compute_infer.count for batch in batches.values()),
                batches=batches,
                **durations,
            )
