"""Runs that a test holds and lets go: models that are exactly as slow as the test wants them, in this process or in one of its own.

`python -m tests.held` is `python -m service` with held runs: it writes `run of N` when a run of N inputs begins, which goes on once
a line is written to its standard input.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import service.engine.model
from service.__main__ import main
from service.engine.session import Feed, RunResult, Sessions


class HeldRuns:
    """What the runs of all models do first: they tell of themselves and wait. Warming up is not held."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.began, self._released = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, size: int) -> None:
        """Blocks the run of `size` inputs."""
        self.sizes.append(size)
        self.began.release()
        self._released.acquire()

    def release(self, runs: int = 1) -> None:
        """Lets so many runs go on, also such as have not begun."""
        self._released.release(runs)


@contextmanager
def held_runs() -> Iterator[HeldRuns]:
    """Holds the runs of models that are loaded meanwhile; lets all go in the end."""
    held = HeldRuns()

    class HeldSessions(Sessions):
        def run(self, feed: Feed, *, alone: bool, channels: bool = False) -> RunResult:
            held(len(next(iter(feed.values()))))
            return super().run(feed, alone=alone, channels=channels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.engine.model, "Sessions", HeldSessions)
        yield held
        held.release(1000)


def _serve() -> None:
    with held_runs() as held:

        def tell() -> None:
            while held.began.acquire():
                print(f"run of {held.sizes[-1]}", flush=True)

        def obey() -> None:
            for _ in sys.stdin:
                held.release()
            held.release(1000)

        for task in (tell, obey):
            threading.Thread(target=task, daemon=True).start()
        main()


if __name__ == "__main__":
    _serve()
