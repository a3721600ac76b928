"""What lives as long as the app and is handed to every route."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from anyio import CapacityLimiter, to_thread
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
    from service.api.direct import DirectAnswers
    from service.api.refusal import EarlyRefusal


_QUERIES_AT_ONCE = 8  # of the 40 threads of the framework
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class State:
    """What one app has: settings, models and what changes them, statistics, drift, metrics, phase, traces, early refusals, direct
    answers.

    `reading` bounds how many large tensors are read at once: as lists of Python's numbers they take many times their place.
    `querying` bounds how many queries of statistics work at once: long ones must leave threads to predictions.
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
    direct: "DirectAnswers | None"
    reading: CapacityLimiter
    querying: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_QUERIES_AT_ONCE))
    _encoding: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))

    @classmethod
    def of(cls, request: Request) -> "State":
        state = request.app.state.normscope
        assert isinstance(state, cls)  # set by create_app
        return state

    async def encode(self, work: Callable[[], _Result]) -> _Result:
        """Makes a large answer, one after the other on a thread.

        Every number becomes an object on the way, which keeps the interpreter busy: several at once take as long as one after the
        other, and the event loop would wait its turn behind all of them.
        """
        return await to_thread.run_sync(work, limiter=self._encoding)

    def observe_inference(self, model: str, timing: Timing) -> None:
        """Reports a prediction that has just been made."""
        self.metrics.observe_inference(model, timing)
        if self.tracing is not None:
            self.tracing.observe_inference(timing)
