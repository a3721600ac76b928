"""When a client has gone away."""

from fastapi import Request


async def disconnected(request: Request) -> None:
    """Returns once the client has closed the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
