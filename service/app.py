"""The only wiring: settings in, the ASGI app out."""

import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from anyio import CapacityLimiter
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from service.api import channels, compare, drift, events, health, home, models, predict, statistics, whatif
from service.api.admission import Admission, Gate
from service.api.answers import add_error_handlers
from service.api.direct import DirectAnswers, DirectRoutes, HotRoutes
from service.api.keys import Keys
from service.api.observed import ObservedRequests, Observer
from service.api.oip import routes as oip
from service.api.outermost import OutermostMiddleware
from service.api.refusal import EarlyRefusal
from service.api.security import document_keys
from service.drift import Change, DriftMonitor
from service.engine.administration import Administration
from service.engine.repository import Repository
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.settings import Settings
from service.state import State
from service.statistics.store import StatisticsStore
from service.tracing import UNTRACED, tracing_from
from service.webhook import Webhook

_CORS_HEADERS = [
    "Authorization",
    "Content-Encoding",
    "Content-Type",
    "Inference-Header-Content-Length",
    "Last-Event-ID",
    "Traceparent",
    "Tracestate",
    "X-API-Key",
    "X-Request-ID",
]
_READ_AT_ONCE = 4  # large tensors; 20 MB of numbers in JSON take 250 MB meanwhile
_DESCRIPTION = (
    "Predictions together with the activation statistics of every layer before and after normalization and around every "
    "residual add."
)


def create_app(settings: Settings) -> FastAPI:
    """The service for these settings. Models are loaded in the background once the app starts; /readyz says when.

    Raises:
        ArtifactError: the model repository or an artifact in it is broken.
        DatabaseUrlError: the setting `database_url` cannot be used.
    """
    store = StatisticsStore(settings)
    repository = Repository(settings, store.traffic_of)
    administration = Administration(repository)
    webhook = _webhook(settings)
    monitor = DriftMonitor(repository, store, settings, _teller(webhook))
    metrics = Metrics(repository, store, settings.metrics_layers, monitor, webhook)
    lifecycle = Lifecycle()
    tracing = tracing_from(os.environ, _version())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        background = threading.Thread(target=_load, args=(repository, settings.watch), name="load-models")
        background.start()
        store.start()
        monitor.start()
        if webhook is not None:
            webhook.start()
        yield
        await run_in_threadpool(monitor.close)
        if webhook is not None:
            await run_in_threadpool(webhook.close)
        await run_in_threadpool(repository.close)
        await run_in_threadpool(administration.close)
        await run_in_threadpool(background.join)
        await run_in_threadpool(store.close)
        if tracing is not None:
            await run_in_threadpool(tracing.close)

    telemetry = UNTRACED if tracing is None else tracing.fastapi_options
    app = OutermostMiddleware(
        title="NormScope",
        version=_version(),
        description=_DESCRIPTION,
        lifespan=lifespan,
        telemetry=telemetry,
        redirect_slashes=False,  # clients that follow a redirect lose the body, others take it for an error
    )
    add_error_handlers(app)
    for module in (predict, whatif, models, channels, compare, statistics, drift, events, oip, health, home):
        app.include_router(module.router)
    if (keys := Keys.of(settings)) is not None:
        document_keys(app.openapi(), keys, open_metrics=settings.open_metrics)  # which the framework makes once
    hot, observer = HotRoutes([predict.router, oip.hot_router]), Observer(metrics, repository)
    refuse = EarlyRefusal(hot, repository, observer, lifecycle, keys)
    gate = Gate(lifecycle, keys, open_metrics=settings.open_metrics)
    # the framework opens spans, and what adds the headers of CORS lies around the app
    direct = None if tracing or settings.cors_origins else DirectAnswers(app, gate, observer)
    reading = CapacityLimiter(_READ_AT_ONCE)
    app.state.normscope = State(
        settings, repository, administration, store, monitor, metrics, lifecycle, tracing, refuse, direct, reading
    )
    app.wrap(DirectRoutes, hot=hot)
    app.wrap(Admission, gate=gate)
    if settings.cors_origins:  # around the keys: a browser asks without one whether it may ask
        app.wrap(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=_CORS_HEADERS,
            expose_headers=["X-Request-ID", "Retry-After", "Inference-Header-Content-Length"],
        )
    app.wrap(ObservedRequests, observer=observer, tracing=tracing)
    return app


def _teller(webhook: Webhook | None) -> Callable[[Change], None]:
    def tell(change: Change) -> None:
        if webhook is not None:
            webhook.post(drift.alert(change))

    return tell


def _webhook(settings: Settings) -> Webhook | None:
    url, secret = settings.alert_webhook, settings.alert_webhook_secret
    return None if url is None else Webhook(url.get_secret_value(), secret.get_secret_value() if secret else None)


def _load(repository: Repository, watch: bool) -> None:
    repository.load_all()
    if watch:
        repository.watch()


def _version() -> str:
    try:
        return version("normscope")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
