"""The process: settings from the command line and the environment in, a listening server out."""

import asyncio
import logging
import os
import socket
import sys
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from models.artifact import ArtifactError
from service.app import create_app
from service.logs import configure_logging
from service.protocol import BoundedProtocol, ConnectionLimits, ConnectionsState
from service.settings import Settings
from service.state import State

_log = logging.getLogger("normscope")


class Server(uvicorn.Server):
    """Serves an app until a signal, and ends in three steps without a failed request.

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
                server_header=False,
            )
        )
        limits = ConnectionLimits(self._settings.header_timeout_s, self._settings.max_header_bytes, self._settings.body_timeout_s)
        self.server_state: ConnectionsState = ConnectionsState(limits, self._lifecycle)
        self._drain_until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)  # sys.exit would wait for the threads that run models
        self._lifecycle.drain()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true once the service has drained."""
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
        if accepted := set(self.server_state.tasks):
            _log.info("stopping: new requests are refused, %d accepted ones are worked on", len(accepted))
            await asyncio.wait(accepted, timeout=self._settings.shutdown_grace_s)
        self.config.timeout_graceful_shutdown = max(1, round(deadline - time.monotonic()))
        await super().shutdown(sockets)


def serve() -> None:
    """Runs until a signal; a setting or an artifact that cannot be used ends the process with a message and status 1."""
    try:
        settings = CliApp.run(Settings)
    except (ValidationError, SettingsError) as error:
        sys.exit(f"invalid settings: {error}")
    configure_logging(settings.log_level, settings.log_format)
    try:
        app = create_app(settings)
    except ArtifactError as error:
        sys.exit(f"cannot serve: {error}")
    Server(app).run()
