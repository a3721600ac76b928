"""What lives as long as the app and is handed to every route."""

from dataclasses import dataclass

from fastapi import Request

from service.engine.repository import Repository
from service.metrics import Metrics
from service.settings import Settings


@dataclass(frozen=True)
class State:
    """Settings, models and metrics of one app."""

    settings: Settings
    repository: Repository
    metrics: Metrics

    @classmethod
    def of(cls, request: Request) -> "State":
        state = request.app.state.normscope
        assert isinstance(state, cls)  # set by create_app
        return state
