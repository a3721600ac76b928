"""Routes of queries over the traffic: a few work at once, so that they never take all threads from predictions."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.state import State


class QueryRoute(APIRoute):
    """Its requests wait their turn without a thread."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As in FastAPI, but within the bound of `State.querying`."""
        handle = super().get_route_handler()

        async def handle_in_turn(request: Request) -> Response:
            async with State.of(request).querying:
                return await handle(request)

        return handle_in_turn
