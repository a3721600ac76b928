"""Dynamic batching: inputs of many requests in, runs of several inputs out.

Jobs come from any thread. As many threads as there may be runs at once take turns at what waits (`waiting.py`): the one whose turn
it is chooses a batch, passes the turn on and runs the batch:

1. jobs of calls that were given up are dropped before they cost anything;
2. texts that have just arrived are tokenized together;
3. the oldest job runs together with those that fit it best: of its shape, or of similar length; the other threads get their
   share, and when the few jobs that wait are all there is to do, one run gets all threads;
4. photos are decoded by the thread that runs them, for others would take the cores from runs; those that come meanwhile join them;
5. a batch that fails runs again one by one, so that one poisonous input fails alone;
6. calls that are complete are handed back, all of a batch with one wake-up of the event loop.

Short texts run on the event loop, too. One that is all there is to do does not wait for a thread (`run_here`). And where the event
loop helps (`help_soon`), it runs a few of those that wait each time it comes round while the threads are busy, in place of one
thread, which would stand still as long as the event loop keeps the interpreter; that one stands by for longer texts.

Whatever goes wrong in between fails the calls that it concerns; the threads live as long as the batcher.
"""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from service.engine.calls import Call, Job, alive, call_soon, fail, hand_back
from service.engine.counters import Counters
from service.engine.inputs import InputReader, TensorInput
from service.engine.outcomes import Outcome
from service.engine.waiting import BatchLimits, Waiting
from service.errors import ModelRunError

_SOURCE = re.compile(
    r"\S*/\S+:\d+ .*?(was false\. |$)"
)  # a place in the runtime's sources, with the condition that is checked there
_log = logging.getLogger("normscope")


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
        self,
        name: str,
        reader: InputReader,
        run: Run,
        counters: Counters,
        limits: BatchLimits,
        runs_at_once: int = 1,
        *,
        helped: bool = False,
    ) -> None:
        """Starts its threads, `runs_at_once`; if the event loop helps, one of them stands by."""
        self._reader, self._run, self._counters, self._limits = reader, run, counters, limits
        self._waiting = Waiting(reader, limits)
        self._helper: asyncio.AbstractEventLoop | None = None  # the event loop that runs texts, too
        self._helping = False  # it will come round
        self._running = self._inputs = 0  # runs, and inputs in them
        self._count = threading.Lock()  # of what is running
        self._helped, self._closing = helped, False
        self._called = threading.Event()  # for the thread that stands by
        works = [self._work] * (runs_at_once - helped) + [self._stand_by] * helped
        self._threads = [threading.Thread(target=work, name=f"run-{name}-{i}", daemon=True) for i, work in enumerate(works)]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Inputs that wait for a run."""
        return self._waiting.depth

    def put(self, job: Job) -> None:
        """Adds a job, see `Waiting.put`."""
        self._waiting.put(job)

    def put_decoded(self, job: Job) -> None:
        """Decodes a photo on the thread that calls, then adds its job: for runs elsewhere than on the processor."""
        for ready in self._decoded([job]):
            self.put(ready)

    def close(self) -> None:
        """Ends the threads once what is waiting has run."""
        self._waiting.close()
        self._closing = True
        self._called.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while self._take_turn():
            pass  # nothing of a batch outlives its turn: its statistics may be large, and the next may be long in coming

    def _stand_by(self) -> None:
        while not self._closing:
            self._called.wait()
            self._called.clear()
            self._take_turn()
        self._work()

    def _take_turn(self) -> bool:
        """Waits for a batch and runs it; false once all is done."""
        with self._waiting.turn:
            try:
                self._waiting.wait()
                if not len(self._waiting):
                    return not self._waiting.closed
                threads = len(self._threads) - (self._helped and self._waiting.is_short)  # the event loop is the other one
                size, alone = share(len(self._waiting), self._running, self._inputs, threads)
                batch = self._waiting.take(min(size, self._limits.max_size))
            except Exception as error:
                _give_up(self._waiting.clear(), error)
                return True
            self._count_running(1, len(batch))
        if self._helper is not None and self._waiting.depth:
            call_soon(self._helper, partial(self.help_soon, self._helper))
        self._run_counted(batch, alone=alone)
        return True

    def _run_counted(self, batch: list[Job], *, alone: bool = False, here: asyncio.AbstractEventLoop | None = None) -> None:
        try:
            self._decode(batch)
            hand_back(self._run_batch(batch, alone=alone), here)
        except Exception as error:  # not of the run itself
            _give_up(batch, error)
        finally:
            self._count_running(-1, -len(batch))

    def run_here(self, job: Job) -> None:
        """Runs a text at once, on the event loop of its call: for runs that take less time than waking a thread and being woken.

        One that turns out to be longer than usual is left to a thread.
        """
        try:
            for ready in self._waiting.with_rows(alive([job])):
                if not self._waiting.is_usual(_row(ready)):
                    self.put(ready)
                else:
                    self._count_running(1, 1)
                    self._run_counted([ready], here=job.call.loop)
        except Exception as error:
            _give_up([job], error)

    def help_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Has the event loop run a few of the texts that wait once it comes round, if the threads are busy by then. On that loop.

        It takes no more at once than one text of usual size would be. For what is not short it calls the thread that stands by.
        """
        if not self._helping or self._helper is not loop:
            self._helping, self._helper = True, loop
            loop.call_soon(self._help)

    def _help(self) -> None:
        self._helping = False
        loop = self._helper
        if loop is None or not self._waiting.turn.acquire(blocking=False):
            return  # a thread is waiting for what comes, or choosing
        try:
            batch = self._waiting.take_few()
        except Exception as error:
            _give_up(self._waiting.clear(), error)
            return
        finally:
            self._waiting.turn.release()
        if not batch and self._waiting.depth:
            self._called.set()
        if batch:
            self._count_running(1, len(batch))
            self._run_counted(batch, here=loop)
            if self._waiting.depth:
                self.help_soon(loop)

    def _count_running(self, runs: int, inputs: int) -> None:
        with self._count:
            self._running += runs
            self._inputs += inputs

    def _decode(self, batch: list[Job]) -> None:
        """Decodes the photos of a batch, and adds what has come meanwhile and is the thread's share: few large runs are faster."""
        fresh = [job for job in batch if job.row is None]
        while fresh:
            self._decoded(fresh)
            fresh = self._late(batch)
            batch += fresh

    def _late(self, batch: list[Job]) -> list[Job]:
        """Those that wait and may join a batch; counted as running. None if a thread is free, which takes them."""
        if not self._waiting.turn.acquire(blocking=False):
            return []
        try:
            self._waiting.take_in()
            waiting = len(self._waiting)
            room = min(_even(waiting + self._inputs, len(self._threads)), self._limits.max_size) - len(batch)
            late = self._waiting.take_beside(batch, room) if room > 0 else []
            self._count_running(0, len(late))
            return late
        finally:
            self._waiting.turn.release()

    def _decoded(self, batch: list[Job]) -> list[Job]:
        """The jobs that can run, all with their rows; a photo that cannot be used fails its call."""
        for job in batch:
            if isinstance(job.item, bytes) and job.row is None and alive([job]):
                start = time.perf_counter_ns()
                try:
                    job.row = self._reader.image(job.item)
                except Exception as error:  # also a decoder's own fault must reach the request that waits
                    fail(job.call, error)
                job.call.spend(input_ns=time.perf_counter_ns() - start)
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
                return [call for job in alive(batch) for call in self._run_batch([job], alone=False)]
            fail(batch[0].call, run_error(error))
            return []
        self._counters.count_run(len(batch), result.input_ns, result.infer_ns, result.output_ns)
        for job in batch:
            job.call.spend(result.input_ns, result.infer_ns, result.output_ns)
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
    return min(waiting, _even(waiting + running, threads)), False


def _even(inputs: int, threads: int) -> int:
    return -(-inputs // threads)


def _row(job: Job) -> TensorInput:
    assert job.row is not None  # only jobs with rows run
    return job.row


def _give_up(jobs: Iterable[Job], error: Exception) -> None:
    """Ends the calls of jobs with a fault of the batcher's own."""
    _log.error("the batcher failed", exc_info=error)
    for job in jobs:
        fail(job.call, error)


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
