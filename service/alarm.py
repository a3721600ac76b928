"""A timer that is set, set anew and cancelled."""

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls back after a time, unless it is cancelled or set anew."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def __bool__(self) -> bool:
        return self._timer is not None

    def set(self, delay_s: float, ring: Callable[[], None]) -> None:
        self.cancel()
        self._timer = self._loop.call_later(delay_s, ring)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
