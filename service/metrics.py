"""Prometheus: names, units and buckets in one place."""

from collections.abc import Iterable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from service.engine.counters import CountersSnapshot
from service.engine.model import Timing
from service.engine.repository import Repository

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one app; a registry of its own, so that several apps in a process do not mix."""

    def __init__(self, repository: Repository) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "normscope_requests", "requests over HTTP and gRPC", ["method", "route", "model", "status"], registry=self._registry
        )
        self._latency = Histogram(
            "normscope_request_seconds",
            "time from the first byte of a request to the last of its answer",
            ["method", "route", "model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._inference = Histogram(
            "normscope_inference_seconds",
            "time of all runs that a request had a part in, with their statistics, without queue",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._queue = Histogram(
            "normscope_queue_seconds",
            "time that a request waited",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_Models(repository))
        ProcessCollector(registry=self._registry)
        # finding a series by its labels costs more than counting in it
        self._requests_of: dict[tuple[str, str, str, int | str], tuple[Counter, Histogram]] = {}
        self._inference_of: dict[str, tuple[Histogram, Histogram]] = {}

    def observe_request(self, method: str, route: str, model: str, status: int | str, seconds: float) -> None:
        """Counts one answered request; over gRPC the method is `GRPC`, the status the name of its code."""
        key = (method, route, model, status)
        series = self._requests_of.get(key)
        if series is None:
            series = self._requests.labels(method, route, model, str(status)), self._latency.labels(method, route, model)
            self._requests_of[key] = series
        series[0].inc()
        series[1].observe(seconds)

    def observe_inference(self, model: str, timing: Timing) -> None:
        """Records the runs of one request."""
        series = self._inference_of.get(model)
        if series is None:
            series = self._inference_of[model] = self._inference.labels(model), self._queue.labels(model)
        series[0].observe((timing.infer_ns + timing.output_ns) / 1e9)
        series[1].observe(timing.queue_ns / 1e9)

    def expose(self) -> tuple[bytes, str]:
        """The text that Prometheus reads, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Models(Collector):
    """What the models themselves count, read when Prometheus asks."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterable[Metric]:
        loaded = GaugeMetricFamily(
            "normscope_model_ready", "1 for a version that can answer, 0 for others", labels=["model", "version"]
        )
        depth = GaugeMetricFamily("normscope_queue_depth", "inputs that wait for a run", labels=["model", "version"])
        sizes = HistogramMetricFamily("normscope_batch_size", "inputs that ran together", labels=["model", "version"])
        for entry in self._repository.index():
            labels = [entry.name, entry.version]
            served = self._repository.find(entry.name, entry.version)
            loaded.add_metric(labels, 0 if served is None else 1)
            if served is not None:
                depth.add_metric(labels, served.depth)
                sizes.add_metric(labels, *_batch_sizes(served.counters.snapshot()))
        return [loaded, depth, sizes]


def _batch_sizes(counters: CountersSnapshot) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets, and the sum of all sizes."""
    runs = {size: durations.compute_infer.count for size, durations in counters.batches.items()}
    buckets: list[tuple[str, float]] = [
        (str(float(limit)), float(sum(count for size, count in runs.items() if size <= limit))) for limit in _SIZES
    ]
    return [*buckets, ("+Inf", float(sum(runs.values())))], float(counters.inference_count)
