"""Prometheus: names, units and buckets in one place."""

import collections
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from models.statistics.drift import State
from service.drift import DriftMonitor
from service.engine.counters import CountersSnapshot
from service.engine.model import Timing
from service.engine.repository import Repository
from service.statistics.columns import side_columns, value_columns
from service.statistics.store import StatisticsStore
from service.statistics.traffic import Dropped
from service.webhook import Webhook

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_MAX_LAYERS = 50  # of each model: every series costs the one who scrapes


class Metrics:
    """The metrics of one app; a registry of its own, so that several apps in a process do not mix."""

    def __init__(
        self,
        repository: Repository,
        statistics: StatisticsStore,
        layers: str = "",
        drift: DriftMonitor | None = None,
        webhook: Webhook | None = None,
    ) -> None:
        """`layers`: whose statistics over the last window are shown, as globs with commas."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "normscope_requests", "requests over HTTP and gRPC", ["method", "route", "model", "status"], registry=self._registry
        )
        self._latency = Histogram(
            "normscope_request_seconds",
            "time from the head of a request until its answer is handed to the connection",
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
        patterns = [part.strip() for part in layers.split(",") if part.strip()]
        self._registry.register(_Statistics(repository, statistics, patterns))
        if drift is not None:
            self._registry.register(_Drift(drift, webhook, patterns))
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


class _Statistics(Collector):
    """The state of storing, and of chosen layers the statistics of the last window that ended; read when Prometheus asks."""

    def __init__(self, repository: Repository, statistics: StatisticsStore, patterns: Sequence[str]) -> None:
        self._repository, self._statistics, self._patterns = repository, statistics, patterns

    def collect(self) -> Iterable[Metric]:
        storing = GaugeMetricFamily("normscope_statistics_storing", "0 while the database does not take the statistics, else 1")
        storing.add_metric([], float(self._statistics.writer.storing))
        waiting = GaugeMetricFamily(
            "normscope_statistics_waiting_windows", "windows that are not stored", labels=["model", "version"]
        )
        samples = CounterMetricFamily(
            "normscope_statistics_dropped_samples",
            "samples left out: backlog, faster than they could be merged; storage, not stored for too long; failed, not mergeable",
            labels=["model", "version", "reason"],
        )
        requests = CounterMetricFamily(
            "normscope_statistics_dropped_requests", "inputs not counted: not stored for too long", labels=["model", "version"]
        )
        channels = CounterMetricFamily(
            "normscope_statistics_dropped_channel_samples",
            "samples left out of the channels: not stored for too long",
            labels=["model", "version"],
        )
        for labels, windows, dropped in self._of_versions():
            waiting.add_metric(labels, windows)
            samples.add_metric([*labels, "backlog"], dropped.backlog)
            samples.add_metric([*labels, "storage"], dropped.storage)
            samples.add_metric([*labels, "failed"], dropped.failed)
            requests.add_metric(labels, dropped.requests)
            channels.add_metric(labels, dropped.channels)
        return [storing, waiting, samples, requests, channels, *(self._layers() if self._patterns else [])]

    def _of_versions(self) -> list[tuple[tuple[str, str], int, Dropped]]:
        """Model and version, windows that wait, and what was dropped; a version may have had several weights."""
        waiting: collections.Counter[tuple[str, str]] = collections.Counter()
        dropped: collections.defaultdict[tuple[str, str], Dropped] = collections.defaultdict(Dropped)
        for traffic in self._statistics.traffic():
            labels = traffic.series.model, traffic.series.version
            waiting[labels] += traffic.waiting
            dropped[labels] += traffic.dropped
        return [(labels, waiting[labels], each) for labels, each in dropped.items()]

    def _layers(self) -> list[Metric]:
        of_side = ["model", "version", "layer", "side"]
        mean = GaugeMetricFamily("normscope_layer_mean", "mean over the last window", labels=of_side)
        std = GaugeMetricFamily("normscope_layer_std", "standard deviation over the last window", labels=of_side)
        ratio = GaugeMetricFamily(
            "normscope_layer_residual_ratio", "mean over the requests of the last window", labels=of_side[:-1]
        )
        began = GaugeMetricFamily(
            "normscope_layer_window_start_seconds", "begin of the last window, seconds since 1970", labels=of_side[:2]
        )
        for entry in self._repository.index():
            served = self._repository.find(entry.name, entry.version)
            last = None if served is None else served.traffic.last_window()
            if served is None or last is None:
                continue
            series, (start, moments) = served.traffic.series, last
            began.add_metric([entry.name, entry.version], start)
            elements, values = side_columns(moments), value_columns(moments.values)
            named = {layer.layer: layer for layer in series.layout.layers}
            for name in _chosen(named, self._patterns):
                labels = [entry.name, entry.version, name]
                for side in named[name].tensors:
                    row = series.layout.row_of[name, side]
                    mean.add_metric([*labels, side], elements["mean"][row])
                    std.add_metric([*labels, side], elements["std"][row])
                if (add := series.layout.add_of.get(name)) is not None:
                    ratio.add_metric(labels, values["mean"][series.value_of("residual_ratio", add)])
        return [mean, std, ratio, began]


def _chosen(layers: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [each for each in layers if any(fnmatchcase(each, pattern) for pattern in patterns)][:_MAX_LAYERS]


class _Drift(Collector):
    """The state of every model that has a reference, and what became of alerts; read when Prometheus asks."""

    def __init__(self, drift: DriftMonitor, webhook: Webhook | None, patterns: Sequence[str]) -> None:
        self._drift, self._webhook, self._patterns = drift, webhook, patterns

    def collect(self) -> Iterable[Metric]:
        of_version = ["model", "version"]
        score = GaugeMetricFamily(
            "normscope_drift_score",
            "-log10 of the p-value of the newest window over all layers; not while unknown",
            labels=of_version,
        )
        state = GaugeMetricFamily(
            "normscope_drift_state", "1 for the state that a model is in, else 0", labels=[*of_version, "state"]
        )
        alerts = CounterMetricFamily("normscope_alerts", "alerts to the webhook by what became of them", labels=["result"])
        for key, status in self._drift.statuses.items():
            for name in get_args(State):
                state.add_metric([*key, name], float(status.state == name))
            if status.test is not None:
                score.add_metric(key, status.test.score)
        for result, count in (self._webhook.counts if self._webhook is not None else {}).items():
            alerts.add_metric([result], count)
        return [score, state, alerts, *(self._layers() if self._patterns else [])]

    def _layers(self) -> list[Metric]:
        score = GaugeMetricFamily(
            "normscope_layer_drift_score",
            "-log10 of the smallest p-value of the layer in the newest window; not while unknown",
            labels=["model", "version", "layer"],
        )
        for key, scores in self._drift.layer_scores.items():
            for layer in _chosen(scores, self._patterns):
                score.add_metric([*key, layer], scores[layer])
        return [score]


def _batch_sizes(counters: CountersSnapshot) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets, and the sum of all sizes."""
    runs = {size: durations.compute_infer.count for size, durations in counters.batches.items()}
    buckets: list[tuple[str, float]] = [
        (str(float(limit)), float(sum(count for size, count in runs.items() if size <= limit))) for limit in _SIZES
    ]
    return [*buckets, ("+Inf", float(sum(runs.values())))], float(counters.inference_count)
