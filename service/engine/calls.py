"""One request inside the engine: made on the event loop, worked on by other threads, resolved on the event loop."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.artifact import Manifest
from models.postprocessing import rank, softmax
from models.statistics.layers import SampleStatistics
from service.engine.inputs import Item, TensorInput

_SHORT_TEXT = 128  # characters


class Outcome(NamedTuple):
    """Of one input.

    Attributes:
        outputs: of the model for this input, without the batch axis; whole where the model has none.
        scores: of the classes, the softmax of their output, float64 (classes,); None where the model has no labels.
        ranking: the classes, the best first, int64 (classes,).
        truncated: whether its text was cut.
        statistics: if they were asked for.
    """

    outputs: tuple[NDArray[Any], ...]
    scores: NDArray[np.float64] | None
    ranking: NDArray[np.int64] | None
    truncated: bool
    statistics: SampleStatistics | None


def outcomes_of(
    manifest: Manifest,
    outputs: Sequence[NDArray[Any]],
    rows: Sequence[TensorInput],
    statistics: Sequence[SampleStatistics | None],
    scored: tuple[NDArray[np.float64], NDArray[np.int64]] | None = None,
) -> list[Outcome]:
    """What a run of these rows makes of each, with its statistics; `scored` are its scores and ranking, if the run made them."""
    if scored is None and manifest.scores_output is not None:
        logits = outputs[manifest.scores_output]
        scored = softmax(logits), rank(logits.astype(np.float64))
    return [
        Outcome(
            tuple([output[i] for output in outputs]) if manifest.batched else tuple(outputs),
            None if scored is None else scored[0][i],
            None if scored is None else scored[1][i],
            row.truncated,
            of_row,
        )
        for i, (row, of_row) in enumerate(zip(rows, statistics, strict=True))
    ]


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
