"""Which batches count in the statistics over traffic."""

import random
import threading
import time
from collections.abc import Callable

_SILENCE_S = 1.0


class Sampler:
    """Draws whole batches with one probability, so that no answer depends on being drawn.

    Besides, a batch is taken if none was within the last second: a quiet service is seen whole. Safe to use from several threads.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`share` of the batches, 0 to 1; 0 takes none at all, 1 takes all."""
        self._share, self._clock = share, clock
        self._random = random.Random()  # nothing secret is drawn
        self._lock = threading.Lock()
        self._last = clock() - _SILENCE_S

    def draw(self) -> bool:
        """Whether the batch at hand is taken."""
        if not self._share:
            return False
        now = self._clock()
        with self._lock:
            taken = now - self._last >= _SILENCE_S or self._random.random() < self._share
            if taken:
                self._last = now
        return taken
