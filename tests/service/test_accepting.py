"""New connections while the event loop is busy with those that it has."""

import asyncio
import socket
import threading
from contextlib import ExitStack

from fastapi import FastAPI

from service.app import create_app
from service.server import Server
from service.settings import Settings
from tests.conftest import SmallRepository

_WAITING = 32


class _Counting(Server):
    """Stands still from its first tick until `connected`, then counts the turns of its event loop until all are open."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(app)
        self.stands, self.connected, self.counted = threading.Event(), threading.Event(), threading.Event()
        self.turns = 0
        self._counting: asyncio.Task[None] | None = None

    async def on_tick(self, counter: int) -> bool:
        if self._counting is None:
            self._counting = asyncio.create_task(self._count())
        return await super().on_tick(counter)

    async def _count(self) -> None:
        self.stands.set()
        self.connected.wait()
        while len(self.server_state.connections) < _WAITING:
            self.turns += 1
            await asyncio.sleep(0)
        self.counted.set()


def test_connections_that_wait_are_taken_in_few_turns_of_the_event_loop(small_repository: SmallRepository) -> None:
    """32 connections that come while the loop stands still are open a few turns later, and not one in each turn."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = _Counting(create_app(Settings(model_repository=small_repository.folder)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with ExitStack() as stack:
        try:
            assert server.stands.wait(60)
            for _ in range(_WAITING):
                stack.enter_context(socket.create_connection(listener.getsockname()))
            server.connected.set()
            assert server.counted.wait(60)
        finally:
            server.connected.set()
            server.should_exit = True
            thread.join()
            listener.close()
    assert server.turns <= _WAITING / 4
