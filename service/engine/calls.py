"""One request inside the engine: made on the event loop, worked on by other threads, resolved on the event loop."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from service.engine.inputs import Item, TensorInput
from service.engine.outcomes import Outcome
from service.errors import DeadlineExceededError

_SHORT_TEXT = 128  # characters


class Call:
    """A request with one job for each input. Whoever drops it sets `abandoned`; nothing new is begun for it then.

    Its jobs know it, but it does not know them: as a ring they would keep their outcomes, tens of megabytes where these hold all
    channels, until the interpreter looks for rings.

    Attributes:
        future: of the outcomes, in the order of the inputs; awaited by the request, so cancelled with it.
        deadline_ns: of `time.perf_counter_ns`, after which nothing is begun for it.
        input_ns, infer_ns, output_ns: what the work on one of its inputs took, the mean of all: decoding or tokenizing, running,
            statistics. The mean, because inputs may be worked on beside each other: the sum could exceed the time that passed.
    """

    def __init__(self, inputs: int, *, statistics: bool, timeout_s: float, channels: bool = False) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Outcome]] = self.loop.create_future()
        self.statistics, self.channels = statistics, channels
        self.started_ns = time.perf_counter_ns()
        self.deadline_ns = self.started_ns + int(timeout_s * 1e9)
        self.input_ns = self.infer_ns = self.output_ns = 0
        self.abandoned = False
        self._inputs = inputs
        self._lock = threading.Lock()  # jobs of one call may run at once
        self._outcomes: dict[int, Outcome] = {}
        self._error: Exception | None = None

    async def outcomes(self, timeout_s: float) -> list[Outcome]:
        """Those of all inputs, once they are there.

        Raises:
            DeadlineExceededError: they are not within the time.
            Exception: what it was failed with.
        """
        if self.future.done():
            return self.future.result()
        expiry = self.loop.call_later(timeout_s, self._expire, timeout_s)
        try:
            return await self.future
        finally:
            expiry.cancel()

    def _expire(self, timeout_s: float) -> None:
        self.fail(
            DeadlineExceededError(
                f"the answer was not ready within {timeout_s:g} s",
                value=timeout_s,
                remedy="ask for more time, send less at once, or try again when the service is less busy",
            )
        )
        self.resolve()

    def spend(self, input_ns: int = 0, infer_ns: int = 0, output_ns: int = 0) -> None:
        """Adds work of this length on one of the jobs to the times. On any thread."""
        with self._lock:
            self.input_ns += input_ns // self._inputs
            self.infer_ns += infer_ns // self._inputs
            self.output_ns += output_ns // self._inputs

    def finish(self, index: int, outcome: Outcome) -> bool:
        """Keeps the outcome of one job; true if it was the last. On any thread."""
        with self._lock:
            self._outcomes[index] = outcome
            return len(self._outcomes) == self._inputs

    def fail(self, error: Exception) -> None:
        """Ends the call with an error; its other jobs are dropped. On any thread."""
        self._error, self.abandoned = error, True

    def resolve(self) -> None:
        """Wakes the request. On the event loop."""
        if self.future.done():
            return
        if self._error is not None:
            self.future.set_exception(self._error)
        else:
            self.future.set_result([self._outcomes[i] for i in range(self._inputs)])


@dataclass(eq=False)
class Job:
    """One input of a call; `row` is what its item becomes."""

    call: Call
    index: int
    item: Item
    row: TensorInput | None = None

    @property
    def is_short(self) -> bool:
        """Whether it is a text that the event loop may tokenize, and perhaps run."""
        return isinstance(self.item, str) and len(self.item) <= _SHORT_TEXT


def fail(call: Call, error: Exception) -> None:
    """Ends a call with an error, from any thread."""
    call.fail(error)
    call_soon(call.loop, call.resolve)


def hand_back(finished: Iterable[Call], here: asyncio.AbstractEventLoop | None = None) -> None:
    """Wakes the requests of complete calls, from any thread; `here` is the loop that it is called on, if it is."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Call]] = {}
    for call in finished:
        by_loop.setdefault(call.loop, []).append(call)
    for loop, calls in by_loop.items():
        if loop is here:
            _resolve(calls)
        else:
            call_soon(loop, partial(_resolve, calls))


def call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Has a loop call back, from any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(callback)


def _resolve(calls: Iterable[Call]) -> None:
    for call in calls:
        call.resolve()


def alive(jobs: list[Job]) -> list[Job]:
    """Those that somebody still waits for."""
    now = time.perf_counter_ns()
    return [job for job in jobs if not job.call.abandoned and now <= job.call.deadline_ns]
