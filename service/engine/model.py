"""A served model: photos, texts or tensors in, outcomes out. Hands inputs to its batchers."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import numpy as np

from models.artifact import Artifact, Manifest
from models.statistics.anomaly import AnomalyScorer
from models.statistics.drift import ReferenceRanks
from models.statistics.layers import BatchReducer, RunOutputs, SideLayout
from models.statistics.reference import Reference
from service.engine.batching import Batch, Batcher, BatchResult
from service.engine.calls import Call, Job
from service.engine.changes import ChannelMoments
from service.engine.counters import Counters
from service.engine.graph import prepare
from service.engine.inputs import InputReader, Item, TensorInput
from service.engine.inputs_in_hand import InputsInHand
from service.engine.interior import Interior
from service.engine.memory import give_back_free_memory
from service.engine.outcomes import Outcome, outcomes_of
from service.engine.running import running_moments
from service.engine.session import Sessions
from service.engine.waiting import BatchLimits
from service.engine.weights import Weights
from service.errors import InvalidRequestError, OverloadedError
from service.settings import Settings
from service.statistics.sampling import Sampler
from service.statistics.series import Series
from service.statistics.sketches import Sketches
from service.statistics.traffic import TrafficStatistics


class Timing(NamedTuple):
    """Where the time of a request went, in nanoseconds; `queue_ns` is what is left of the total."""

    total_ns: int
    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int


TrafficOf = Callable[[Manifest, SideLayout], TrafficStatistics]


def collected_in_memory(manifest: Manifest, layout: SideLayout) -> TrafficStatistics:
    """Statistics that nothing stores."""
    return TrafficStatistics(Series.of(manifest, layout))


class ServedModel:
    """One loaded version of a model."""

    def __init__(self, artifact: Artifact, settings: Settings, threads: int, traffic_of: TrafficOf = collected_in_memory) -> None:
        """Loads the sessions and runs each once, so that the first request is as fast as the others.

        Args:
            artifact: the verified folder.
            settings: of the service.
            threads: that run this model.
            traffic_of: gives the place for the statistics over its traffic.

        Raises:
            ArtifactError: the artifact cannot be loaded or run.
        """
        self.manifest = artifact.manifest
        self.layout = SideLayout(tuple(self.manifest.layers))
        self.reference = Reference.load(artifact, self.layout)
        self.running = running_moments(artifact)
        self.ranks = None if self.reference is None else ReferenceRanks.of(self.reference.values, len(self.layout.rows))
        self.counters = Counters()
        self._settings = settings
        self._reader = InputReader(artifact, settings.max_image_pixels)
        example = self._reader.feed([self._reader.example()])
        weights = Weights()
        graph = prepare(artifact, settings.provider, self.layout.reductions, self.layout.pairs, held=weights)
        self._tapped = Sessions(graph, threads, example)
        self._reducer = BatchReducer(self.layout, graph.observers)
        all_counted = settings.statistics_sample == 1
        self._plain = (
            self._tapped if all_counted else Sessions(prepare(artifact, settings.provider, held=weights), threads, example)
        )
        quick = self._plain.quick and self._tapped.quick and not graph.taps  # nor does reducing tensors take long
        self._runs_here = quick and settings.provider == "cpu" and not settings.max_queue_delay_ms  # which asks to wait for others
        self._sampler = Sampler(settings.statistics_sample if self.manifest.layers else 0)
        name = f"{self.manifest.name}-{self.manifest.version}"
        # one run at a time, on another device: then photos are decoded beside it
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix=f"decode-{name}") if settings.provider != "cpu" else None
        self._reducers = ThreadPoolExecutor(threads, thread_name_prefix=f"reduce-{name}")
        self._usual_elements = self._reader.example().elements
        self._max_elements = max(settings.max_batch_elements, self._usual_elements)
        max_size = settings.max_batch_size if self.manifest.batched else 1
        limits = BatchLimits(max_size, settings.max_batch_elements, settings.max_queue_delay_ms / 1000)
        runs_at_once = self._tapped.runs_at_once
        # the event loop is one of those that run texts
        self._helps = self._runs_here and self._reader.reads_texts and runs_at_once > 1 and not all_counted
        self._watching = Batcher(name, self._reader, self._run_watched, self.counters, limits, runs_at_once)
        self._quick = (
            self._watching
            if all_counted
            else Batcher(f"{name}-plain", self._reader, self._run_quick, self.counters, limits, runs_at_once, helped=self._helps)
        )
        moments = {} if self.reference is None else self.reference.moments_of(self.layout)
        entering = {layer: ChannelMoments(*each) for (layer, side), each in moments.items() if side == "before"}
        self.interior = Interior(artifact, self._reader, settings, entering)
        self._inputs = InputsInHand(self.manifest.name, settings.max_queue * self._max_elements)
        self._places = threading.Lock()
        self._empty = threading.Condition(self._places)
        self._in_hand = 0
        self._closed = False
        self.traffic = traffic_of(self.manifest, self.layout)  # last, for a model that cannot be loaded never releases it
        self.traffic.ranks = self.ranks

    @cached_property
    def scorer(self) -> AnomalyScorer | None:
        """What scores inputs against the reference, if it can; made when somebody first asks, which takes a moment, and kept."""
        scorer = None if self.reference is None else self.reference.scorer(self.layout)
        give_back_free_memory()
        return scorer

    @cached_property
    def reference_sketches(self) -> Sketches | None:
        """Of all values of the reference; made when somebody first compares with it."""
        if self.reference is None:
            return None
        sketches = Sketches(self.reference.values.shape[1])
        sketches.update(self.reference.values.astype(np.float64))
        return sketches

    @property
    def depth(self) -> int:
        """Inputs that wait for a run."""
        return sum(batcher.depth for batcher in {self._watching, self._quick})

    @property
    def overload(self) -> OverloadedError | None:
        """Why no more requests are taken now, if so: `max_queue` are in hand."""
        limit = self._settings.max_queue
        if self._in_hand < limit:
            return None
        return OverloadedError(
            f"the queue of {self.manifest.name} is full",
            value=limit,
            limit=limit,
            remedy="try again later, or raise NORMSCOPE_MAX_QUEUE",
        )

    def acquire(self) -> bool:
        """Takes a place in the queue, held from before the body is read until the answer is made; false once `close` was called.

        Raises:
            OverloadedError: `max_queue` requests are in hand.
        """
        with self._places:
            if self._closed:
                return False
            if (overload := self.overload) is not None:
                raise overload
            self._in_hand += 1
            return True

    def release(self) -> None:
        """Gives the place back."""
        with self._places:
            self._in_hand -= 1
            if self._closed:
                self._empty.notify_all()

    async def predict(
        self, items: Sequence[Item], *, statistics: bool, channels: bool = False, timeout_s: float | None = None
    ) -> tuple[list[Outcome], Timing]:
        """Runs all inputs of one request, each together with those of others where that is faster.

        If it is cancelled, because its client has gone, work that has not begun is dropped.

        Args:
            items: at least one.
            statistics: of every input are wanted.
            channels: those of every channel are wanted too.
            timeout_s: seconds until the request is given up; the setting `request_timeout_s` where it is less or none.

        Raises:
            InvalidInputError: an input cannot be used.
            InvalidRequestError: an input is larger than a batch may be.
            ModelRunError: the model fails on an input.
            DeadlineExceededError: the time is over.
            OverloadedError: too many inputs are in hand.
        """
        limit_s = self._settings.request_timeout_s
        timeout_s = limit_s if timeout_s is None else min(timeout_s, limit_s)
        call = Call(len(items), statistics=statistics, channels=channels, timeout_s=timeout_s)
        batcher = self._watching if statistics else self._quick
        self._inputs.take(elements := sum([self._elements(item) for item in items]))
        try:
            jobs = [self._job(call, i, item) for i, item in enumerate(items)]
            if not statistics and self._may_run_here(jobs) and await self._is_alone():
                batcher.run_here(jobs[0])
            else:
                for job in jobs:
                    self._enqueue(job, batcher)
                if self._helps and not statistics:
                    batcher.help_soon(call.loop)
            outcomes = await call.outcomes(timeout_s)
        except BaseException:
            call.abandoned = True
            self.counters.count_failure(time.perf_counter_ns() - call.started_ns)
            raise
        finally:
            self._inputs.give_back(elements)
        total = time.perf_counter_ns() - call.started_ns
        queued = max(total - call.input_ns - call.infer_ns - call.output_ns, 0)
        self.counters.count_success(total, queued, call.input_ns, call.infer_ns, call.output_ns)
        return outcomes, Timing(total, queued, call.input_ns, call.infer_ns, call.output_ns)

    def _may_run_here(self, jobs: Sequence[Job]) -> bool:
        """Whether it is a short text, whose run takes no longer than waking a thread, and all that there is to do so far."""
        return self._in_hand <= 1 and self._runs_here and len(jobs) == 1 and jobs[0].is_short

    async def _is_alone(self) -> bool:
        """Whether a request is the only one in hand."""
        await asyncio.sleep(0)  # requests that have come at the same moment have their turn to come in
        return self._in_hand == 1

    def _job(self, call: Call, index: int, item: Item) -> Job:
        if isinstance(item, TensorInput):
            self._check_size(item)
            return Job(call, index, item, row=item)
        return Job(call, index, item)

    def _enqueue(self, job: Job, batcher: Batcher) -> None:
        if isinstance(job.item, bytes) and self._decoders is not None:
            self._decoders.submit(batcher.put_decoded, job)
        else:
            batcher.put(job)

    def _elements(self, item: Item) -> int:
        return item.elements if isinstance(item, TensorInput) else self._usual_elements

    def _check_size(self, row: TensorInput) -> None:
        if row.elements > self._max_elements:
            raise InvalidRequestError(
                f"one input has {row.elements} numbers, more than {self._max_elements}",
                value=row.elements,
                limit=self._max_elements,
                remedy="send a smaller one, or raise NORMSCOPE_MAX_BATCH_ELEMENTS",
            )

    def _run_quick(self, batch: Batch) -> BatchResult:
        """A batch of which nobody asks the statistics."""
        return self._run_tapped(batch, counted=True) if self._sampler.draw() else self._run_plain(batch)

    def _run_watched(self, batch: Batch) -> BatchResult:
        """A batch whose statistics are asked for; whether they count is drawn all the same, so that the sample is not biased."""
        return self._run_tapped(batch, counted=self._sampler.draw())

    def _run_plain(self, batch: Batch) -> BatchResult:
        start = time.perf_counter_ns()
        feed = self._reader.feed(batch.rows)
        ready = time.perf_counter_ns()
        result = self._plain.run(feed, alone=batch.alone)
        ran = time.perf_counter_ns()
        self.traffic.count(len(batch.rows))
        outcomes = outcomes_of(self.manifest, result.outputs, batch.rows, [None] * len(batch.rows), result.scored)
        return BatchResult(outcomes, ready - start, ran - ready, time.perf_counter_ns() - ran)

    def _run_tapped(self, batch: Batch, *, counted: bool) -> BatchResult:
        start = time.perf_counter_ns()
        feed = self._reader.feed(batch.rows)
        channels = counted and self.traffic.wants_channels()
        ready = time.perf_counter_ns()
        result = self._tapped.run(feed, alone=batch.alone, channels=batch.channels or channels)
        ran = time.perf_counter_ns()
        outputs = RunOutputs(result.tensors, result.summary, result.channels)
        observed = self._reducer.reduce(outputs, feed, self._reducers)
        if counted:
            self.traffic.add(observed, channels=channels)
        else:
            self.traffic.count(len(batch.rows))
        kept = [observed.sample(i) if wanted else None for i, wanted in enumerate(batch.keep)]
        outcomes = outcomes_of(self.manifest, result.outputs, batch.rows, kept, result.scored)
        return BatchResult(outcomes, ready - start, ran - ready, time.perf_counter_ns() - ran)

    def close(self) -> None:
        """Takes no new requests, waits for those in hand and ends the threads."""
        with self._places:
            self._closed = True
            self._empty.wait_for(lambda: self._in_hand == 0)
        if self._decoders is not None:
            self._decoders.shutdown()
        for batcher in {self._watching, self._quick}:
            batcher.close()
        self._reducers.shutdown()
        self.traffic.release()
        self.interior.close()
