"""`python -m service`: can be stopped from its first moment on; the rest is in `service.server`."""

import signal
import sys
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the process normally: before uvicorn takes the signals over, and when it raises them again after it has drained."""
    sys.exit(0)


def main() -> None:
    """Serves until SIGTERM or SIGINT, finishes accepted requests and exits with 0."""
    # first of all: as process 1 of a container a signal without a handler is lost, and the imports below take a second
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)

    from service.server import serve

    serve()


if __name__ == "__main__":
    main()
