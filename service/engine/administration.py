"""Loading and unloading on request: one after the other, on a thread of their own. Knows no HTTP.

A change waits for the requests in hand of its model, and those may wait for a thread that reads their bodies: if changes took the
threads that others need, many at once would wait for ever, and all else with them.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from service.engine.repository import Repository


class Administration:
    """What requests may change of a repository. A change that has been asked for is made, also if its client goes away."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="administration")

    async def load(self, name: str) -> None:
        """As `Repository.load`, and raises like it."""
        await self._do(self._repository.load, name)

    async def unload(self, name: str) -> None:
        """As `Repository.unload`, and raises like it."""
        await self._do(self._repository.unload, name)

    async def _do(self, change: Callable[[str], None], name: str) -> None:
        context = copy_context()  # the log tells which request asked
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, context.run, change, name))

    def close(self) -> None:
        """Waits for the change that is being made; those that wait are dropped."""
        self._thread.shutdown(cancel_futures=True)
