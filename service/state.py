"""What lives as long as the app and is handed to every route."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyio import CapacityLimiter
from fastapi import Request

from service.drift import DriftMonitor
from service.engine.administration import Administration
from service.engine.model import Timing
from service.engine.repository import Repository
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.settings import Settings
from service.statistics.store import StatisticsStore
from service.tracing import Tracing

if TYPE_CHECKING:
    from service.api.refusal import EarlyRefusal


@dataclass(frozen=True)
class State:
    """What one app has: settings, models and what changes them, statistics, drift, metrics, phase, traces, early refusals.

    `reading` bounds how many large tensors are read at once: as lists of Python's numbers they take many times their place.
    """

    settings: Settings
    repository: Repository
    administration: Administration
    statistics: StatisticsStore
    drift: DriftMonitor
    metrics: Metrics
    lifecycle: Lifecycle
    tracing: Tracing | None
    refuse: "EarlyRefusal"
    reading: CapacityLimiter

    @classmethod
    def of(cls, request: Request) -> "State":
        state = request.app.state.normscope
        assert isinstance(state, cls)  # set by create_app
        return state

    def observe_inference(self, model: str, timing: Timing) -> None:
        """Reports a prediction that has just been made."""
        self.metrics.observe_inference(model, timing)
        if self.tracing is not None:
            self.tracing.observe_inference(timing)
