"""The jobs of one graph that wait for a run, and which of them run together. Runs nothing."""

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from service.engine.calls import Job, alive, fail
from service.engine.inputs import InputReader, TensorInput

_FEW = 4
_log = logging.getLogger("normscope")


@dataclass(frozen=True)
class BatchLimits:
    """How far a batch may grow, and how long it may wait for more."""

    max_size: int
    max_elements: int
    max_delay_s: float


class Waiting:
    """Jobs come in from any thread, and are taken by whoever holds the `turn`.

    Attributes:
        turn: to be held for what takes jobs, or tells of those that can be taken.
        closed: nothing more will come.
    """

    def __init__(self, reader: InputReader, limits: BatchLimits) -> None:
        self._reader, self._limits = reader, limits
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._arrived: list[Job] = []  # taken from the inbox, but not looked at yet
        self._waiting: list[Job] = []  # with their rows
        self._usual = reader.example()  # stands for photos that are not decoded yet: all have its shape
        self.turn = threading.Lock()
        self.closed = False

    def __len__(self) -> int:
        """Those that can be taken."""
        return len(self._waiting)

    @property
    def depth(self) -> int:
        """All that wait."""
        return self._inbox.qsize() + len(self._arrived) + len(self._waiting)

    def put(self, job: Job) -> None:
        """Adds a job; its item is a photo or a text, or its row is there."""
        self._inbox.put(job)

    def close(self) -> None:
        """Nothing comes after it."""
        self._inbox.put(None)

    @property
    def is_short(self) -> bool:
        """Whether the oldest may run on the event loop."""
        return self._waiting[0].is_short and self.is_usual(self._row(self._waiting[0]))

    def is_usual(self, row: TensorInput) -> bool:
        """Whether it is no larger than usual."""
        return row.elements <= self._usual.elements

    def clear(self) -> list[Job]:
        """Takes all that have come."""
        jobs = [*self._arrived, *self._waiting]
        self._arrived, self._waiting = [], []
        return jobs

    def wait(self) -> None:
        """Blocks until something can be taken or all is done; takes in what is there, and waits for more as is allowed."""
        if not self._waiting and not self._arrived and not self.closed:
            self._receive(None)
        while not self.closed and (left := self._patience_s()) > 0:
            self._arrived = alive(self._arrived)
            if len(self._arrived) >= self._limits.max_size or not self._receive(left):
                break
        self.take_in()

    def take_in(self) -> None:
        """Takes in what is there."""
        while not self._inbox.empty():
            self._receive(None)
        self._look_at_arrived()

    def take(self, size: int) -> list[Job]:
        """Up to so many: the oldest, and those that fit it best."""
        return self._take_oldest(size, self._limits.max_elements)

    def take_beside(self, batch: Sequence[Job], size: int) -> list[Job]:
        """Up to so many that may join a batch of photos."""
        elements = self._limits.max_elements - (len(batch) - 1) * self._usual.elements
        return self._take_alike(batch[0], self._waiting, size + 1, elements)

    def take_few(self) -> list[Job]:
        """Short texts for the event loop: the oldest and those that fit it best, together no more than one of usual size.

        Takes in only as many as that, for it tokenizes them; none if the oldest is no short text.
        """
        self._waiting = alive(self._waiting)
        if not self._waiting:
            while len(self._arrived) < _FEW and not self._inbox.empty():
                self._receive(None)
            if not all(job.is_short for job in self._arrived):
                return []
            self._look_at_arrived()
        if not self._waiting or not self.is_short:
            return []
        return self._take_oldest(min(_FEW, self._limits.max_size), min(self._usual.elements, self._limits.max_elements))

    def with_rows(self, jobs: list[Job]) -> list[Job]:
        """The jobs that can run, each but photos with its row; a text that cannot be used fails its call."""
        texts = [(job, job.item) for job in jobs if isinstance(job.item, str) and job.row is None]
        if texts:
            start = time.perf_counter_ns()
            rows = self._tokenized([text for _, text in texts])
            spent = time.perf_counter_ns() - start
            for (job, _), row in zip(texts, rows, strict=True):
                job.call.spend(input_ns=spent)
                if isinstance(row, Exception):
                    fail(job.call, row)
                else:
                    job.row = row
        return [job for job in jobs if job.row is not None or isinstance(job.item, bytes)]

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
            self.closed = True
        else:
            self._arrived.append(job)
        return True

    def _tokenized(self, texts: list[str]) -> Sequence[TensorInput | Exception]:
        """Rows, or errors in their place; where the tokenizer itself fails, of each text by itself."""
        try:
            return self._reader.texts(texts)
        except BaseException as error:  # the panic of a tokenizer is no Exception
            if len(texts) > 1:
                return [row for text in texts for row in self._tokenized([text])]
            _log.error("the tokenizer failed", exc_info=error)
            return [error if isinstance(error, Exception) else RuntimeError(f"the tokenizer failed: {error}")]

    def _look_at_arrived(self) -> None:
        self._waiting = alive(self._waiting) + self.with_rows(alive(self._arrived))
        self._arrived = []

    def _take_oldest(self, size: int, elements: int) -> list[Job]:
        first, *others = self._waiting
        return [first, *self._take_alike(first, others, size, elements)]

    def _take_alike(self, first: Job, others: list[Job], size: int, elements: int) -> list[Job]:
        """Of the others, which then wait alone, those that should share a run of up to `size` jobs and `elements` numbers."""
        chosen = self._reader.compatible(self._row(first), [self._row(job) for job in others], size, elements)
        taken = set(chosen)
        self._waiting = [job for i, job in enumerate(others) if i not in taken]
        return [others[i] for i in chosen]

    def _row(self, job: Job) -> TensorInput:
        return job.row or self._usual
