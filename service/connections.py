"""What all connections of a server share."""

from dataclasses import dataclass

from uvicorn.server import ServerState

from service.api.direct import DirectAnswers
from service.api.refusal import EarlyRefusal
from service.lifecycle import Lifecycle


@dataclass(frozen=True)
class ConnectionLimits:
    """What a request may take: its head (first line and headers) and its body."""

    header_timeout_s: float
    max_header_bytes: int
    body_timeout_s: float


class ConnectionsState(ServerState):
    """What uvicorn shares between the connections of a server, and what `BoundedProtocol` needs beside it."""

    def __init__(self, limits: ConnectionLimits, lifecycle: Lifecycle, refuse: EarlyRefusal, direct: DirectAnswers | None) -> None:
        super().__init__()
        self.limits, self.lifecycle, self.refuse, self.direct = limits, lifecycle, refuse, direct
