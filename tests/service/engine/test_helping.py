"""A batcher that the event loop helps: runs on its threads are held by the tests, those on the event loop go on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from models.artifact import load_artifact
from service.engine.batching import Batch, Batcher, BatchResult
from service.engine.calls import Call, Job
from service.engine.counters import Counters
from service.engine.inputs import InputReader
from service.engine.waiting import BatchLimits
from service.errors import ModelRunError
from tests.conftest import SmallRepository
from tests.service.engine.test_batching import POISON, result_of, tokens


class Helped:
    """A batcher of two threads, one of which stands by, with a run that keeps what ran where."""

    def __init__(self, reader: InputReader, max_size: int) -> None:
        self.here: list[list[int]] = []
        self.on_threads: list[list[int]] = []
        self.began, self.released = threading.Semaphore(0), threading.Semaphore(0)
        self._loop = asyncio.get_running_loop()
        self.batcher = Batcher("test", reader, self._run, Counters(), BatchLimits(max_size, 1000, 0), runs_at_once=2, helped=True)

    def _run(self, batch: Batch) -> BatchResult:
        firsts = [int(row.arrays[0][0]) for row in batch.rows]
        if threading.current_thread() is threading.main_thread():
            self.here.append(firsts)
        else:
            self.on_threads.append(firsts)
            self.began.release()
            self.released.acquire()
        return result_of(batch)

    def submit(self, first: int, length: int = 1, item: str | None = "short", *, helps: bool = True) -> Call:
        """One text of so many tokens; `helps`: the event loop hears of it."""
        row = tokens(first, length)
        call = Call(1, statistics=False, timeout_s=60)
        self.batcher.put(Job(call, 0, row if item is None else item, row))
        if helps:
            self.batcher.help_soon(self._loop)
        return call

    async def occupy(self, first: int = 0) -> Call:
        """A text that a thread has begun to run."""
        while not self.batcher._waiting.turn.locked():  # until the thread waits for it
            await asyncio.sleep(0)
        call = self.submit(first)
        await asyncio.to_thread(self.began.acquire)
        return call


Made = Callable[..., AbstractAsyncContextManager[Helped]]


@pytest.fixture
def helped(small_repository: SmallRepository) -> Made:
    """Makes one of a text model, and closes it."""
    reader = InputReader(load_artifact(small_repository.folder / "text" / "1"), 1000)

    @asynccontextmanager
    async def made(max_size: int = 8) -> AsyncIterator[Helped]:
        one = Helped(reader, max_size)
        try:
            yield one
        finally:
            one.released.release(100)
            await asyncio.to_thread(one.batcher.close)
        assert not any(thread.is_alive() for thread in one.batcher._threads)

    return made


async def _answer(call: Call) -> float:
    (outcome,) = await asyncio.wait_for(call.future, 60)
    return float(outcome.outputs[0][0])


def test_short_texts_run_on_the_event_loop_while_the_threads_are_busy(helped: Made) -> None:
    """A free thread is the first to run; what comes meanwhile is answered before that run has ended."""

    async def main() -> None:
        async with helped() as one:
            busy = await one.occupy()
            assert [await _answer(call) for call in [one.submit(1), one.submit(2)]] == [1, 2]
            assert not busy.future.done()
            one.released.release()
            assert await _answer(busy) == 0
            assert one.on_threads == [[0]]
            assert [first for batch in one.here for first in batch] == [1, 2]

    asyncio.run(main())


def test_the_event_loop_runs_few_at_once(helped: Made, small_repository: SmallRepository) -> None:
    """Of many that wait no more than four, and together no more tokens than a text of usual size."""
    usual = InputReader(load_artifact(small_repository.folder / "text" / "1"), 1000).example().elements

    async def main() -> None:
        async with helped(max_size=100) as one:
            await one.occupy()
            short, half = [one.submit(i) for i in range(9)], [one.submit(100 + i, usual // 2) for i in range(3)]
            assert [await _answer(call) for call in [*short, *half]] == [*range(9), 100, 101, 102]
            assert max(len(batch) for batch in one.here) == 4
            assert max(sum(first >= 100 for first in batch) for batch in one.here) == 2

    asyncio.run(main())


@pytest.mark.parametrize(("item", "length"), [("x" * 200, 1), ("short", 500), (None, 1)])
def test_what_is_not_short_runs_on_the_thread_that_stands_by(helped: Made, item: str | None, length: int) -> None:
    """A text of many characters or tokens, and one that comes as a tensor, while the other thread is busy."""

    async def main() -> None:
        async with helped() as one:
            await one.occupy()
            call = one.submit(7, length, item)
            await asyncio.to_thread(one.began.acquire)
            one.released.release(2)
            assert await _answer(call) == 7
            assert (one.on_threads, one.here) == ([[0], [7]], [])

    asyncio.run(main())


def test_what_a_thread_leaves_behind_runs_on_the_event_loop(helped: Made) -> None:
    """Also if nothing comes any more: of three that wait a thread takes two, and begins to run them."""

    async def main() -> None:
        async with helped(max_size=2) as one:
            await one.occupy()
            calls = [one.submit(i, helps=False) for i in (1, 2, 3)]
            one.released.release()
            assert await _answer(calls[2]) == 3
            await asyncio.to_thread(one.began.acquire)
            assert not calls[0].future.done()
            assert (one.on_threads, one.here) == ([[0], [1, 2]], [[3]])

    asyncio.run(main())


def test_the_event_loop_keeps_to_the_limits_of_a_batch(helped: Made) -> None:
    """With batches of one it runs one at a time."""

    async def main() -> None:
        async with helped(max_size=1) as one:
            await one.occupy()
            assert [await _answer(call) for call in [one.submit(i) for i in range(3)]] == [0, 1, 2]
            assert one.here == [[0], [1], [2]]

    asyncio.run(main())


def test_what_comes_while_a_thread_chooses_is_not_forgotten(helped: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop cannot look at it then; the thread calls it once more when it has chosen."""

    async def main() -> None:
        async with helped() as one:
            await one.occupy()
            choosing, chosen = threading.Event(), threading.Event()
            compatible = one.batcher._reader.compatible

            def slowly(*arguments: Any) -> list[int]:
                monkeypatch.undo()
                choosing.set()
                chosen.wait()
                return compatible(*arguments)

            first = one.submit(1, item=None, helps=False)
            monkeypatch.setattr(one.batcher._reader, "compatible", slowly)
            one.released.release()
            await asyncio.to_thread(choosing.wait)
            second = one.submit(2)
            for _ in range(3):  # the event loop comes round in vain
                await asyncio.sleep(0)
            chosen.set()
            assert await _answer(second) == 2
            assert not first.future.done()

    asyncio.run(main())


def test_a_poisonous_text_on_the_event_loop_fails_alone(helped: Made) -> None:
    """Its neighbours are answered; who has gone away costs no run."""

    async def main() -> None:
        async with helped() as one:
            await one.occupy()
            good, poison, gone, other = (one.submit(first) for first in (1, POISON, 2, 3))
            gone.abandoned = True
            assert [await _answer(call) for call in (good, other)] == [1, 3]
            with pytest.raises(ModelRunError, match="out of data bounds"):
                await poison.future
            assert all(2 not in batch for batch in one.here)

    asyncio.run(main())


def test_a_fault_of_the_event_loop_fails_what_waits(helped: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours while it chooses reaches the requests, and later ones are answered."""

    async def main() -> None:
        async with helped() as one:
            await one.occupy()
            with monkeypatch.context() as broken:
                broken.setattr(one.batcher._reader, "compatible", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    await one.submit(1).future
            assert await _answer(one.submit(2)) == 2

    asyncio.run(main())
