"""A served model: photos, texts or tensors in, outcomes out. Prepares inputs off the event loop and hands them to its batchers."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from models.artifact import Artifact
from models.preprocessing import InvalidInputError
from service.engine.batching import Batcher, BatchLimits, BatchResult, fail
from service.engine.calls import Call, Job, Outcome
from service.engine.counters import Counters
from service.engine.inputs import InputReader, Item, TensorInput
from service.engine.session import Session
from service.errors import ClientGoneError, DeadlineExceededError, InvalidRequestError, OverloadedError
from service.settings import Settings
from service.statistics.layers import BatchStatistics, SideLayout, batch_statistics
from service.statistics.store import TrafficStatistics

_WATCH_AFTER_S = 0.02  # most answers are quicker; watching each client would cost more than it saves

Gone = Callable[[], Awaitable[None]]
"""Returns once the client is gone."""


@dataclass(frozen=True)
class Timing:
    """Where the time of a request went, in nanoseconds; `queue_ns` is what is left of the total."""

    total_ns: int
    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int


class ServedModel:
    """One loaded version of a model."""

    def __init__(self, artifact: Artifact, settings: Settings, threads: int) -> None:
        """Loads the sessions and runs each once, so that the first request is as fast as the others.

        Raises:
            ArtifactError: the artifact cannot be loaded or run.
        """
        self.manifest = artifact.manifest
        self.layout = SideLayout(tuple(self.manifest.layers))
        self.traffic = TrafficStatistics(self.layout)
        self.counters = Counters()
        self._settings = settings
        self._reader = InputReader(artifact, settings.max_image_pixels)
        taps = [layer.tensors[side] for layer, side in self.layout.rows]
        self._tapped = Session(artifact, taps, threads, settings.provider)
        self._plain = self._tapped if settings.traffic_statistics else Session(artifact, [], threads, settings.provider)
        for session in {self._tapped, self._plain}:
            session.run(self._reader.feed([self._reader.example()]))
        name = f"{self.manifest.name}-{self.manifest.version}"
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix=f"decode-{name}")
        self._reducers = ThreadPoolExecutor(threads, thread_name_prefix=f"reduce-{name}")
        limits = BatchLimits(settings.max_batch_size, settings.max_batch_elements, settings.max_queue_delay_ms / 1000)
        self._watching = Batcher(name, self._reader, self._run_watched, self.counters, limits)
        self._quick = (
            self._watching
            if settings.traffic_statistics
            else Batcher(f"{name}-plain", self._reader, self._run_plain, self.counters, limits)
        )
        self._places = threading.Condition()
        self._in_hand = 0
        self._closed = False

    @property
    def depth(self) -> int:
        """Inputs that wait for a run."""
        return sum(batcher.depth for batcher in {self._watching, self._quick})

    def acquire(self) -> bool:
        """Takes a place in the queue, held from before the body is read until the answer is made; false once `close` was called.

        Raises:
            OverloadedError: `max_queue` requests are in hand.
        """
        with self._places:
            if self._closed:
                return False
            if self._in_hand >= self._settings.max_queue:
                raise OverloadedError(
                    f"the queue of {self.manifest.name} is full",
                    value=self._in_hand,
                    limit=self._settings.max_queue,
                    remedy="try again later, or raise NORMSCOPE_MAX_QUEUE",
                )
            self._in_hand += 1
            return True

    def release(self) -> None:
        """Gives the place back."""
        with self._places:
            self._in_hand -= 1
            if self._closed:
                self._places.notify_all()

    async def predict(
        self, items: Sequence[Item], *, statistics: bool, timeout_s: float | None = None, gone: Gone | None = None
    ) -> tuple[list[Outcome], Timing]:
        """Runs all inputs of one request, each together with those of others where that is faster.

        Args:
            items: at least one.
            statistics: of every input are wanted.
            timeout_s: seconds until the request is given up; the setting `request_timeout_s` where it is less or none.
            gone: tells when nobody waits any more; the work is dropped then.

        Raises:
            InvalidInputError: an input cannot be used.
            InvalidRequestError: an input is larger than a batch may be.
            ModelRunError: the model fails on an input.
            DeadlineExceededError: the time is over.
            ClientGoneError: `gone` returned.
        """
        limit_s = self._settings.request_timeout_s
        timeout_s = limit_s if timeout_s is None else min(timeout_s, limit_s)
        call = Call(items, statistics=statistics, timeout_s=timeout_s)
        batcher = self._watching if statistics else self._quick
        expiry = call.loop.call_later(timeout_s, _expire, call, timeout_s)
        watch = None if gone is None else call.loop.call_later(_WATCH_AFTER_S, _watch, call, gone)
        try:
            for job in call.jobs:
                self._enqueue(job, batcher)
            outcomes = await call.future
        except BaseException:
            call.abandoned = True
            self.counters.count_failure(time.perf_counter_ns() - call.started_ns)
            raise
        finally:
            expiry.cancel()
            if watch is not None:
                watch.cancel()
            if call.watcher is not None:
                call.watcher.cancel()
        total = time.perf_counter_ns() - call.started_ns
        queued = max(total - call.input_ns - call.infer_ns - call.output_ns, 0)
        self.counters.count_success(total, queued, call.input_ns, call.infer_ns, call.output_ns)
        return outcomes, Timing(total, queued, call.input_ns, call.infer_ns, call.output_ns)

    def _enqueue(self, job: Job, batcher: Batcher) -> None:
        if isinstance(job.item, bytes):
            self._decoders.submit(self._decode, job, job.item, batcher)
            return
        if isinstance(job.item, TensorInput):
            self._check_size(job.item)
            job.row = job.item
        batcher.put(job)

    def _decode(self, job: Job, data: bytes, batcher: Batcher) -> None:
        if job.call.abandoned:
            return
        try:
            job.row = self._reader.image(data)
        except InvalidInputError as error:
            fail(job.call, error)
            return
        except Exception as error:  # a decoder's own fault must reach the request that waits
            fail(job.call, error)
            return
        job.call.input_ns = time.perf_counter_ns() - job.call.started_ns
        batcher.put(job)

    def _check_size(self, row: TensorInput) -> None:
        if row.elements > self._settings.max_batch_elements:
            raise InvalidRequestError(
                f"one input has {row.elements} numbers, more than {self._settings.max_batch_elements}",
                value=row.elements,
                limit=self._settings.max_batch_elements,
                remedy="send a smaller one, or raise NORMSCOPE_MAX_BATCH_ELEMENTS",
            )

    def _run_plain(self, rows: Sequence[TensorInput], keep: Sequence[bool]) -> BatchResult:
        start = time.perf_counter_ns()
        feed = self._reader.feed(rows)
        ready = time.perf_counter_ns()
        result = self._plain.run(feed)
        ran = time.perf_counter_ns()
        self.traffic.count(len(rows))
        outcomes = [Outcome(result.logits[i], row.truncated, None) for i, row in enumerate(rows)]
        return BatchResult(outcomes, ready - start, ran - ready, time.perf_counter_ns() - ran)

    def _run_watched(self, rows: Sequence[TensorInput], keep: Sequence[bool]) -> BatchResult:
        start = time.perf_counter_ns()
        feed = self._reader.feed(rows)
        ready = time.perf_counter_ns()
        result = self._tapped.run(feed)
        ran = time.perf_counter_ns()
        observed: BatchStatistics = batch_statistics(self.layout, result.tensors, feed, self._reducers)
        self.traffic.count(len(rows))
        if self._settings.traffic_statistics:
            self.traffic.add(observed)
        outcomes = [
            Outcome(result.logits[i], row.truncated, observed.sample(i) if kept else None)
            for i, (row, kept) in enumerate(zip(rows, keep, strict=True))
        ]
        return BatchResult(outcomes, ready - start, ran - ready, time.perf_counter_ns() - ran)

    def close(self) -> None:
        """Takes no new requests, waits for those in hand and ends the threads."""
        with self._places:
            self._closed = True
            self._places.wait_for(lambda: self._in_hand == 0)
        self._decoders.shutdown()
        for batcher in {self._watching, self._quick}:
            batcher.close()
        self._reducers.shutdown()


def _expire(call: Call, timeout_s: float) -> None:
    call.fail(
        DeadlineExceededError(
            f"the answer was not ready within {timeout_s:g} s",
            value=timeout_s,
            remedy="ask for more time, send less at once, or try again when the service is less busy",
        )
    )
    call.resolve()


def _watch(call: Call, gone: Gone) -> None:
    async def watch() -> None:
        await gone()
        call.fail(ClientGoneError("the client is gone", remedy="nobody reads this"))
        call.resolve()

    call.watcher = asyncio.ensure_future(watch())
