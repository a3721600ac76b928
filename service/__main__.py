"""`python -m service`: one process that serves until SIGTERM or SIGINT, then finishes accepted requests and exits with 0."""

import logging
import signal
import sys
from types import FrameType

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from models.artifact import ArtifactError
from service.app import create_app
from service.settings import Settings


def _stopped(number: int, frame: FrameType | None) -> None:
    """uvicorn raises the signal again once it has drained; the process must then end normally, not by the signal."""


def main() -> None:
    """Reads the settings from the command line and the environment, and serves."""
    try:
        settings = CliApp.run(Settings)
    except (ValidationError, SettingsError) as error:
        sys.exit(f"invalid settings: {error}")
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        app = create_app(settings)
    except ArtifactError as error:
        sys.exit(f"cannot serve: {error}")
    signal.signal(signal.SIGTERM, _stopped)
    signal.signal(signal.SIGINT, _stopped)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
        server_header=False,
    )


if __name__ == "__main__":
    main()
