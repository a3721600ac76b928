"""The process: settings from the command line and the environment in, a listening server out."""

import asyncio
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from models.artifact import ArtifactError
from service.app import create_app
from service.connections import ConnectionLimits, ConnectionsState
from service.engine.memory import give_back_large_arrays
from service.logs import configure_logging
from service.protocol import BoundedProtocol
from service.settings import Settings, explain
from service.state import State
from service.statistics.database import DatabaseUrlError

if TYPE_CHECKING:
    from service.grpc.server import GrpcServer

_log = logging.getLogger("normscope")
_ACCEPTS_PER_TURN = 16
# A thread that wants the interpreter lets the one that has it go on for so long. With the usual 5 ms the event loop waits that long
# behind every thread that decodes, tokenizes or describes, and runs that have ended wait behind the event loop.
_SWITCH_INTERVAL_S = 0.0002
_GC_THRESHOLD = 10_000  # a request makes hundreds of objects and hardly a cycle: by default an eighth of its time went to looking


class Server(uvicorn.Server):
    """Serves an app until a signal, over gRPC too if a port is set for it, and ends in three steps without a failed request.

    1. For `drain_delay_s` everything is still served, but the service is not ready any more, and every answer is the last of its
       connection: routers learn late that an instance goes away.
    2. New requests are answered 503, accepted ones have `shutdown_grace_s` to finish.
    3. The listener is closed, and the process ends with status 0.

    A second signal ends the process at once, with the status that shells give it (128 + its number).
    """

    def __init__(self, app: FastAPI) -> None:
        state = app.state.normscope
        assert isinstance(state, State)  # set by create_app
        self._settings, self._lifecycle = state.settings, state.lifecycle
        super().__init__(
            uvicorn.Config(
                app,
                host=self._settings.host,
                port=self._settings.port,
                http=BoundedProtocol,
                ws="none",
                lifespan="on",
                log_config=None,  # records go to the one handler of service.logs
                access_log=False,
                timeout_keep_alive=self._settings.idle_timeout_s,  # type: ignore[arg-type]  # a time like any other
                proxy_headers=False,  # nothing depends on the address of the client
                server_header=False,
            )
        )
        limits = ConnectionLimits(self._settings.header_timeout_s, self._settings.max_header_bytes, self._settings.body_timeout_s)
        self.server_state: ConnectionsState = ConnectionsState(limits, self._lifecycle, state.refuse, state.direct)
        self._drain_until: float | None = None
        self._make_grpc = None if self._settings.grpc_port is None else _grpc_server(state, app.version, self._settings.grpc_port)
        self._grpc: GrpcServer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._make_grpc is not None:
            try:
                self._grpc = self._make_grpc()
            except OSError as error:
                sys.exit(f"cannot serve: {error}")
        await super().startup(sockets)
        await self._accept_more()
        if self._grpc is not None:
            await self._grpc.start()

    async def _accept_more(self) -> None:
        """Watches every listener several times.

        The event loop takes one connection of a listener in each of its turns. Under overload turns take tens of milliseconds, so
        that new connections, those of health checks too, would wait until the overload ends while open ones are answered.
        """
        loop = asyncio.get_running_loop()
        make_connection = partial(
            BoundedProtocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        for listener in [listener for server in self.servers for listener in server.sockets]:
            for _ in range(_ACCEPTS_PER_TURN - 1):
                copy = socket.socket(fileno=os.dup(listener.fileno()))
                self.servers.append(await loop.create_server(make_connection, sock=copy, backlog=self.config.backlog))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)  # sys.exit would wait for the threads that run models
        self._lifecycle.drain()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true once the service has drained."""
        if self._grpc is not None:
            self._grpc.refresh()
        if not await super().on_tick(counter):
            return False
        if self._drain_until is None:
            self._lifecycle.drain()
            for connection in self.server_state.connections:
                if isinstance(connection, BoundedProtocol):
                    connection.close_after_answer()
            self._drain_until = time.monotonic() + self._settings.drain_delay_s
            _log.info("stopping: not ready any more, new requests are served for %g s", self._settings.drain_delay_s)
        return time.monotonic() >= self._drain_until

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._lifecycle.stop()
        deadline = time.monotonic() + self._settings.shutdown_grace_s
        accepted = set(self.server_state.tasks)
        if self._grpc is not None:
            accepted |= self._grpc.finish()
        if accepted:
            _log.info("stopping: new requests are refused, %d accepted ones are worked on", len(accepted))
            await asyncio.wait(accepted, timeout=self._settings.shutdown_grace_s)
        if self._grpc is not None:
            await self._grpc.stop()
        self.config.timeout_graceful_shutdown = max(1, round(deadline - time.monotonic()))
        await super().shutdown(sockets)


def _grpc_server(state: State, version: str, port: int) -> "Callable[[], GrpcServer]":
    """Makes the server for gRPC, on the event loop that is to run it.

    Raises:
        ImportError: the extra `grpc` is not installed.
    """
    from service.grpc.server import GrpcServer  # noqa: PLC0415  # the packages of the extra may be missing

    return partial(GrpcServer, state, version, port)


def tune_interpreter() -> None:
    """Sets for the whole process how the interpreter shares itself among threads and looks for garbage."""
    gc.set_threshold(_GC_THRESHOLD)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def serve() -> None:
    """Runs until a signal; a setting or an artifact that cannot be used ends the process with a message and status 1."""
    try:
        settings = CliApp.run(Settings)
    except (ValidationError, SettingsError) as error:
        sys.exit(f"invalid settings: {explain(error) if isinstance(error, ValidationError) else error}")
    configure_logging(settings.log_level, settings.log_format)
    give_back_large_arrays()
    try:
        app = create_app(settings)
    except (ArtifactError, DatabaseUrlError) as error:
        sys.exit(f"cannot serve: {error}")
    try:
        server = Server(app)
    except ImportError as error:
        sys.exit(f"cannot serve gRPC: {error.name} is not installed; pip install normscope[grpc], or unset NORMSCOPE_GRPC_PORT")
    tune_interpreter()
    server.run()
