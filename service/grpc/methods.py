"""The methods that describe and manage: requests in, the fields of their replies out, as the routes under /v2 make them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from service.api.oip.interface import ModelInterface
from service.api.oip.metadata import EXTENSIONS, SERVER, configure_model, describe_model, ready_versions
from service.api.oip.parameters import read_flag, refuse_overrides
from service.api.oip.statistics import describe_counters, ready_models
from service.engine.model import ServedModel
from service.errors import NotReadyError, UnknownModelError
from service.grpc.health import is_ready
from service.grpc.messages import Fields, IndexRequest, NamedModel, RepositoryRequest, read_parameters
from service.state import State

Method = Callable[[Any], Awaitable[Fields]]
"""A request, which is of a generated class, to the fields of its reply."""


class Methods:
    """All methods but the two that infer."""

    def __init__(self, state: State, version: str) -> None:
        self._state, self._version = state, version
        self._repository = state.repository
        self.by_name: Mapping[str, Method] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }

    async def _server_live(self, request: object) -> Fields:
        return {"live": True}

    async def _server_ready(self, request: object) -> Fields:
        return {"ready": is_ready(self._state)}

    async def _server_metadata(self, request: object) -> Fields:
        return {"name": SERVER, "version": self._version, "extensions": list(EXTENSIONS)}

    async def _model_ready(self, request: NamedModel) -> Fields:
        try:
            self._find(request)
        except (UnknownModelError, NotReadyError):
            return {"ready": False}
        return {"ready": True}

    async def _model_metadata(self, request: NamedModel) -> Fields:
        interface = ModelInterface.of(self._find(request))
        return describe_model(interface, ready_versions(self._repository, request.name))

    async def _model_config(self, request: NamedModel) -> Fields:
        return {"config": configure_model(ModelInterface.of(self._find(request)), self._state.settings)}

    async def _model_statistics(self, request: NamedModel) -> Fields:
        if not request.name:
            models = ready_models(self._repository)
        else:
            found = self._find(request)
            models = [found] if request.version else ready_models(self._repository, request.name)
        return {"model_stats": [describe_counters(served) for served in models]}

    async def _index(self, request: IndexRequest) -> Fields:
        entries = self._repository.index() if request.ready else await asyncio.to_thread(self._repository.listing)
        return {"models": [asdict(entry) for entry in entries if entry.state == "READY" or not request.ready]}

    async def _load(self, request: RepositoryRequest) -> Fields:
        refuse_overrides(read_parameters(request.parameters))
        await self._state.administration.load(request.model_name)
        return {}

    async def _unload(self, request: RepositoryRequest) -> Fields:
        read_flag("the request", read_parameters(request.parameters), "unload_dependents")
        await self._state.administration.unload(request.model_name)
        return {}

    def _find(self, request: NamedModel) -> ServedModel:
        return self._repository.get(request.name, request.version or None)
