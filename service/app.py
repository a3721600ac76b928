"""The only wiring: settings in, the ASGI app out."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from service.api import health, home, models, predict
from service.api.answers import add_error_handlers, answer_error
from service.api.direct import DirectRoutes
from service.api.observed import ObservedRequests
from service.engine.repository import Repository
from service.metrics import Metrics
from service.settings import Settings
from service.state import State

_HOT = (predict.predict,)
_DESCRIPTION = (
    "Predictions together with the activation statistics of every layer before and after normalization and around every "
    "residual add."
)


def create_app(settings: Settings) -> FastAPI:
    """The service for these settings. Models are loaded in the background once the app starts; /readyz says when.

    Raises:
        ArtifactError: the model repository or an artifact in it is broken.
    """
    repository = Repository(settings)
    metrics = Metrics(repository)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        background = threading.Thread(target=_load, args=(repository, settings.watch), name="load-models")
        background.start()
        yield
        await run_in_threadpool(repository.close)
        await run_in_threadpool(background.join)

    app = FastAPI(title="NormScope", version=_version(), description=_DESCRIPTION, lifespan=lifespan)
    app.state.normscope = State(settings, repository, metrics)
    add_error_handlers(app)
    for module in (predict, models, health, home):
        app.include_router(module.router)
    hot = [route for route in app.routes if isinstance(route, APIRoute) and route.endpoint in _HOT]
    app.add_middleware(DirectRoutes, routes=hot, answer_error=answer_error)
    app.add_middleware(ObservedRequests, metrics=metrics, models=repository.names)
    return app


def _load(repository: Repository, watch: bool) -> None:
    repository.load_all()
    if watch:
        repository.watch()


def _version() -> str:
    try:
        return version("normscope")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
