"""A FastAPI app whose own middleware lies around all that the framework adds, and not within it.

The framework wraps every request in five layers of its own (error pages, limits, telemetry, exit stacks). A hot route that is
answered further out costs none of them. The span of a request, where there are traces, is opened further out still.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp


class OutermostMiddleware(FastAPI):
    """`wrap` instead of `add_middleware`; each wraps all before it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._around: list[Callable[[ASGIApp], ASGIApp]] = []

    def wrap(self, middleware: Callable[..., ASGIApp], **options: Any) -> None:
        """Puts one more middleware around everything."""
        self._around.append(partial(middleware, **options))

    def build_middleware_stack(self) -> ASGIApp:
        """Called by the framework before the first request."""
        stack = super().build_middleware_stack()
        for middleware in self._around:
            stack = middleware(stack)
        return stack
