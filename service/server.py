"""The process: settings from the command line and the environment in, a listening server out."""

import logging
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from models.artifact import ArtifactError
from service.app import create_app
from service.settings import Settings


def serve() -> None:
    """Runs until a signal; a setting or an artifact that cannot be used ends the process with a message and status 1."""
    try:
        settings = CliApp.run(Settings)
    except (ValidationError, SettingsError) as error:
        sys.exit(f"invalid settings: {error}")
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        app = create_app(settings)
    except ArtifactError as error:
        sys.exit(f"cannot serve: {error}")
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",  # /metrics counts requests; health checks would fill the log
        timeout_graceful_shutdown=settings.shutdown_grace_s,
        server_header=False,
    )
