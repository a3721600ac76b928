"""The query string of a request: parameters in, a checked pydantic model out."""

from functools import lru_cache
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from service.api.layers import MAX_PATTERN_LENGTH
from service.api.schemas import PredictLevel
from service.errors import InvalidRequestError

LAYERS_HELP = "glob over layer names, or several with commas"


class InputsQuery(BaseModel):
    """Parameters of every request that brings inputs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: int = Field(default=5, ge=1, description="how many labels; at most as many as the model has")
    layers: str = Field(default="*", max_length=MAX_PATTERN_LENGTH, description=f"{LAYERS_HELP}; for their statistics")
    version: str | None = Field(default=None, description="of the model; the newest where it is not given")
    timeout_ms: float | None = Field(default=None, gt=0, description="milliseconds until the request is given up")

    def timeout_s(self, limit_s: float) -> float:
        """Seconds until the request is given up, at most `limit_s`."""
        return limit_s if self.timeout_ms is None else min(self.timeout_ms / 1000, limit_s)


class PredictQuery(InputsQuery):
    """Parameters of a prediction."""

    statistics: PredictLevel = Field(
        default="none", description="how much to return of every layer; histogram: of at most 16, which `layers` must name"
    )
    anomaly: bool = Field(default=False, description="how far the layers of each input lie from the reference of the model")


_Query = TypeVar("_Query", bound=BaseModel)


def read_query(request: Request, kind: type[_Query]) -> _Query:
    """The parameters of a request.

    Raises:
        InvalidRequestError: one is unknown, or not what the model allows.
    """
    try:
        query: _Query = _parse(kind, request.scope["query_string"])
        return query
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise InvalidRequestError(f"{name}: no such parameter", value=name, limit=known, remedy=f"use {known}") from None
        raise InvalidRequestError(
            f"{name}: {first['msg']}", value=str(first["input"])[:200], limit=first["msg"], remedy=f"correct {name}; see /docs"
        ) from None


@lru_cache(maxsize=256)  # clients repeat themselves, and the models are frozen
def _parse(kind: type[BaseModel], query_string: bytes) -> Any:
    return kind.model_validate(dict(QueryParams(query_string)))


def documented_query(kind: type[BaseModel]) -> list[dict[str, Any]]:
    """The OpenAPI parameters of a model."""
    properties = kind.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": schema.get("description", "")}
        for name, schema in properties.items()
    ]
