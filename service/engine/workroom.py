"""Where single inputs are looked at in depth: one thread of a model, apart from its batchers, and a bound on what waits for it."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.errors import ClientGoneError, DeadlineExceededError, OverloadedError

_Result = TypeVar("_Result")


class Task:
    """One request at work. Whoever no longer waits for it sets `abandoned`."""

    def __init__(self) -> None:
        self.abandoned = False

    def go_on(self) -> None:
        """To be called between two steps.

        Raises:
            ClientGoneError: nobody waits any more.
        """
        if self.abandoned:
            raise ClientGoneError("nobody waits for the answer", remedy="nobody reads this")


class Workroom:
    """Does one thing after the other, while traffic keeps its own threads; a request beyond `limit` in hand is refused."""

    def __init__(self, name: str, limit: int) -> None:
        self._name, self._limit = name, limit
        self._places = threading.Semaphore(limit)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"workroom-{name}")

    async def do(self, work: Callable[[Task], _Result], timeout_s: float) -> _Result:
        """Runs `work` on the thread; its place is free again once it has really ended.

        Raises:
            OverloadedError: `limit` are in hand.
            DeadlineExceededError: the time is over.
        """
        if not self._places.acquire(blocking=False):
            raise OverloadedError(
                f"{self._limit} requests that look into {self._name} are in hand",
                value=self._limit,
                limit=self._limit,
                remedy="try again later, or raise NORMSCOPE_MAX_EXPERIMENTS",
            )
        task = Task()
        running = self._thread.submit(work, task)
        running.add_done_callback(lambda _: self._places.release())
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(running)
        except TimeoutError:
            raise DeadlineExceededError(
                "the answer was not ready in time",
                remedy="ask for more time, send fewer inputs, or try again when the service is less busy",
            ) from None
        finally:
            task.abandoned = True

    def close(self) -> None:
        """Waits for what is in hand."""
        self._thread.shutdown()
