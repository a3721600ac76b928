"""Where the process stands between its start and its end; the one place that the server, the routes and gRPC read it from."""

from typing import Literal

Phase = Literal["serving", "draining", "stopping"]


class Lifecycle:
    """`serving` until a signal; `draining` while routers notice, all is still served; `stopping` once new requests are refused.

    Whether the models are ready is another question, which the repository answers.
    """

    def __init__(self) -> None:
        self.phase: Phase = "serving"

    @property
    def serving(self) -> bool:
        """Whether no end is in sight: what readiness tells."""
        return self.phase == "serving"

    @property
    def stopping(self) -> bool:
        """Whether new requests are refused."""
        return self.phase == "stopping"

    def drain(self) -> None:
        """A signal came: no longer ready. Safe in a signal handler."""
        if self.phase == "serving":
            self.phase = "draining"

    def stop(self) -> None:
        """The delay is over: from now on only accepted requests are worked on."""
        self.phase = "stopping"
