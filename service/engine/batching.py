"""Dynamic batching: inputs of many requests in, runs of several inputs out.

Jobs come into the inbox from any thread. As many threads as there may be runs at once take turns at the queue: the one whose turn
it is owns it alone, chooses a batch, passes the turn on and runs the batch. Whoever has the turn takes what is waiting:

1. jobs of calls that were given up are dropped before they cost anything;
2. texts that have just arrived are tokenized together;
3. the oldest job runs together with those that fit it best: of its shape, or of similar length; the other threads get their
   share, and when the few jobs that wait are all there is to do, one run gets all threads;
4. photos are decoded by the thread that runs them, for others would take the cores from runs;
5. a batch that fails runs again one by one, so that one poisonous input fails alone;
6. calls that are complete are handed back, all of a batch with one wake-up of the event loop.

A short text that is all there is to do does not wait for a thread: `run_here` runs it on the event loop.

Whatever goes wrong in between fails the calls that it concerns; the threads live as long as the batcher.
"""

import asyncio
import contextlib
import logging
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from service.engine.calls import Call, Job, Outcome
from service.engine.counters import Counters
from service.engine.inputs import InputReader, TensorInput
from service.errors import ModelRunError

_SOURCE = re.compile(
    r"\S*/\S+:\d+ .*?(was false\. |$)"
)  # a place in the runtime's sources, with the condition that is checked there
_log = logging.getLogger("normscope")


@dataclass(frozen=True)
class BatchLimits:
    """How far a batch may grow, and how long it may wait for more."""

    max_size: int
    max_elements: int
    max_delay_s: float


class BatchResult(NamedTuple):
    """One outcome for each row, and the nanoseconds that went to making the feed, to the graph and to the outputs."""

    outcomes: list[Outcome]
    input_ns: int
    infer_ns: int
    output_ns: int


class Batch(NamedTuple):
    """What runs together.

    Attributes:
        rows: one for each input.
        keep: for each row, whether its statistics are wanted.
        channels: whether they are wanted by channel for any.
        alone: nothing else is running or waiting, so that the run may use all threads.
    """

    rows: Sequence[TensorInput]
    keep: Sequence[bool]
    channels: bool
    alone: bool


Run = Callable[[Batch], BatchResult]


class Batcher:
    """The queue of one graph and the threads that empty it."""

    def __init__(
        self, name: str, reader: InputReader, run: Run, counters: Counters, limits: BatchLimits, runs_at_once: int = 1
    ) -> None:
        self._reader, self._run, self._counters, self._limits = reader, run, counters, limits
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._arrived: list[Job] = []  # taken from the inbox, but not looked at yet
        self._waiting: list[Job] = []  # with their rows
        self._closed = False
        self._turn = threading.Lock()  # of all above but the inbox
        self._usual = reader.example()  # stands for photos that are not decoded yet: all have its shape
        self._running = self._inputs = 0  # runs, and inputs in them
        self._count = threading.Lock()  # of what is running
        self._threads = [threading.Thread(target=self._work, name=f"run-{name}-{i}", daemon=True) for i in range(runs_at_once)]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Inputs that wait for a run."""
        return self._inbox.qsize() + len(self._arrived) + len(self._waiting)

    def put(self, job: Job) -> None:
        """Adds a job; its item is a photo or a text, or its row is there."""
        self._inbox.put(job)

    def put_decoded(self, job: Job) -> None:
        """Decodes a photo on the thread that calls, then adds its job: for runs elsewhere than on the processor."""
        for ready in self._decoded([job]):
            self.put(ready)

    def close(self) -> None:
        """Ends the threads once what is waiting has run."""
        self._inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while self._take_turn():
            pass  # nothing of a batch outlives its turn: its statistics may be large, and the next may be long in coming

    def _take_turn(self) -> bool:
        """Waits for a batch and runs it; false once all is done."""
        with self._turn:
            try:
                self._take_arrivals()
                if not self._waiting:
                    return not self._closed
                batch, alone = self._next_batch()
            except Exception as error:
                jobs = [*self._arrived, *self._waiting]
                self._arrived, self._waiting = [], []
                _give_up(jobs, error)
                return True
            self._count_running(1, len(batch))
        try:
            _hand_back(self._run_batch(batch, alone=alone))
        except Exception as error:  # not of the run itself
            _give_up(batch, error)
        finally:
            self._count_running(-1, -len(batch))
        return True

    def run_here(self, job: Job) -> None:
        """Runs a text at once, on the event loop of its call: for runs that take less time than waking a thread and being woken.

        One that turns out to be longer than usual is left to a thread.
        """
        self._count_running(1, 1)
        try:
            for ready in self._with_rows(_alive([job])):
                if _row(ready).elements > self._usual.elements:
                    self.put(ready)
                else:
                    _resolve(self._run_batch([ready], alone=False))
        except Exception as error:
            _give_up([job], error)
        finally:
            self._count_running(-1, -1)

    def _count_running(self, runs: int, inputs: int) -> None:
        with self._count:
            self._running += runs
            self._inputs += inputs

    def _take_arrivals(self) -> None:
        """Blocks until there is something to run; then takes all that has come, and waits for more as long as is allowed."""
        if not self._waiting and not self._closed:
            self._receive(None)
        while not self._inbox.empty():
            self._receive(None)
        while not self._closed and (left := self._patience_s()) > 0:
            self._arrived = _alive(self._arrived)
            if len(self._arrived) >= self._limits.max_size or not self._receive(left):
                break
        self._waiting = _alive(self._waiting) + self._with_rows(_alive(self._arrived))
        self._arrived = []

    def _patience_s(self) -> float:
        """How long the oldest input may still wait for others; what a batch has left behind has waited before."""
        if self._waiting or not self._limits.max_delay_s:
            return 0
        oldest_ns = min((job.call.started_ns for job in self._arrived), default=0)
        return self._limits.max_delay_s - (time.perf_counter_ns() - oldest_ns) / 1e9

    def _receive(self, timeout_s: float | None) -> bool:
        try:
            job = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return False
        if job is None:
            self._closed = True
        else:
            self._arrived.append(job)
        return True

    def _with_rows(self, jobs: list[Job]) -> list[Job]:
        """The jobs that can run, each but photos with its row; a text that cannot be used fails its call."""
        texts = [(job, job.item) for job in jobs if isinstance(job.item, str) and job.row is None]
        if texts:
            start = time.perf_counter_ns()
            rows = self._tokenized([text for _, text in texts])
            spent = time.perf_counter_ns() - start
            for call, count in Counter(job.call for job, _ in texts).items():
                call.spend(count, input_ns=spent)
            for (job, _), row in zip(texts, rows, strict=True):
                if isinstance(row, Exception):
                    fail(job.call, row)
                else:
                    job.row = row
        return [job for job in jobs if job.row is not None or isinstance(job.item, bytes)]

    def _tokenized(self, texts: list[str]) -> Sequence[TensorInput | Exception]:
        """Rows, or errors in their place; where the tokenizer itself fails, of each text by itself."""
        try:
            return self._reader.texts(texts)
        except BaseException as error:  # the panic of a tokenizer is no Exception
            if len(texts) > 1:
                return [row for text in texts for row in self._tokenized([text])]
            _log.error("the tokenizer failed", exc_info=error)
            return [error if isinstance(error, Exception) else RuntimeError(f"the tokenizer failed: {error}")]

    def _next_batch(self) -> tuple[list[Job], bool]:
        """The batch, and whether it is all there is to do."""
        first, others = self._waiting[0], self._waiting[1:]
        size, alone = share(len(self._waiting), self._running, self._inputs, len(self._threads))
        rows = [job.row or self._usual for job in self._waiting]
        chosen = self._reader.compatible(rows[0], rows[1:], min(size, self._limits.max_size), self._limits.max_elements)
        batch = [first, *(others[i] for i in chosen)]
        taken = set(chosen)
        self._waiting = [job for i, job in enumerate(others) if i not in taken]
        return batch, alone

    def _decoded(self, batch: list[Job]) -> list[Job]:
        """The jobs that can run, all with their rows; a photo that cannot be used fails its call."""
        for job in batch:
            if isinstance(job.item, bytes) and job.row is None and _alive([job]):
                start = time.perf_counter_ns()
                try:
                    job.row = self._reader.image(job.item)
                except Exception as error:  # also a decoder's own fault must reach the request that waits
                    fail(job.call, error)
                job.call.spend(1, input_ns=time.perf_counter_ns() - start)
        return [job for job in batch if job.row is not None]

    def _run_batch(self, batch: list[Job], *, alone: bool) -> list[Call]:
        """Runs a batch; returns the calls that are complete now."""
        if not (batch := self._decoded(batch)):
            return []
        try:
            keep, channels = [job.call.statistics for job in batch], any(job.call.channels for job in batch)
            result = self._run(Batch([_row(job) for job in batch], keep, channels, alone))
        except Exception as error:  # whatever a graph does with an input that it was not made for
            if len(batch) > 1:
                return [call for job in _alive(batch) for call in self._run_batch([job], alone=False)]
            fail(batch[0].call, run_error(error))
            return []
        self._counters.count_run(len(batch), result.input_ns, result.infer_ns, result.output_ns)
        for call, count in Counter(job.call for job in batch).items():
            call.spend(count, input_ns=result.input_ns, infer_ns=result.infer_ns, output_ns=result.output_ns)
        return [job.call for job, outcome in zip(batch, result.outcomes, strict=True) if job.call.finish(job.index, outcome)]


def share(waiting: int, runs: int, running: int, threads: int) -> tuple[int, bool]:
    """How many of the inputs that wait a thread takes, and whether its run may use all threads.

    It takes as many as leave all threads the same number: all that wait behind a long run would become a long run in turn, and what
    comes meanwhile short ones. It may use all threads if nothing is running and half of them would stay idle.

    Args:
        waiting: inputs, at least one.
        runs: that are going on.
        running: inputs in them.
        threads: of the batcher.
    """
    if not runs and 2 * waiting <= threads:
        return waiting, True
    return min(waiting, -(-(waiting + running) // threads)), False


def fail(call: Call, error: Exception) -> None:
    """Ends a call with an error, from any thread."""
    call.fail(error)
    _call_soon(call.loop, call.resolve)


def _give_up(jobs: Iterable[Job], error: Exception) -> None:
    """Ends the calls of jobs with a fault of the batcher's own."""
    _log.error("the batcher failed", exc_info=error)
    for job in jobs:
        fail(job.call, error)


def _hand_back(finished: Iterable[Call]) -> None:
    """Wakes the requests of complete calls, from any thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Call]] = {}
    for call in finished:
        by_loop.setdefault(call.loop, []).append(call)
    for loop, calls in by_loop.items():
        _call_soon(loop, partial(_resolve, calls))


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(callback)


def _resolve(calls: Iterable[Call]) -> None:
    for call in calls:
        call.resolve()


def _alive(jobs: list[Job]) -> list[Job]:
    """Those that somebody still waits for."""
    now = time.perf_counter_ns()
    return [job for job in jobs if not job.call.abandoned and now <= job.call.deadline_ns]


def _row(job: Job) -> TensorInput:
    assert job.row is not None  # only jobs with rows wait
    return job.row


def run_error(error: Exception) -> Exception:
    """What a client may know of a failed run: the runtime's words about the input, without names of files and nodes."""
    _log.warning("a run failed: %s", error)
    status = str(error).partition("Status Message:")[2].partition("\n")[0].strip()
    reason = _SOURCE.sub("", status)[:200] or type(error).__name__
    return ModelRunError(
        f"the model cannot run on this input ({reason})",
        value=reason,
        remedy="send tensors of the shape and range that it was made for",
    )
