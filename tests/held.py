"""Runs that a test holds and lets go: models that are exactly as slow as the test wants them, in this process or in one of its own.

`python -m tests.held` is `python -m service` with held runs: it writes `run of N` when a run of N inputs begins, which goes on once
a line is written to its standard input.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import service.engine.model
from service.__main__ import main
from service.engine.session import Feed, RunResult, Sessions


class Held:
    """What some calls do first: they tell that they began, and wait."""

    def __init__(self) -> None:
        self.began, self._released = threading.Semaphore(0), threading.Semaphore(0)

    def wait(self) -> None:
        """Blocks a call."""
        self.began.release()
        self._released.acquire()

    def release(self, calls: int = 1) -> None:
        """Lets so many calls go on, also such as have not begun."""
        self._released.release(calls)


@contextmanager
def held_calls(owner: Any, name: str) -> Iterator[Held]:
    """Holds the calls of a function, which its users find as an attribute of `owner`; lets all go in the end."""
    held, function = Held(), getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        held.wait()
        return function(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        try:
            yield held
        finally:
            held.release(1000)


class HeldRuns(Held):
    """What the runs of all models do first. Warming up is not held."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __call__(self, size: int) -> None:
        """Blocks the run of `size` inputs."""
        self.sizes.append(size)
        self.wait()


@contextmanager
def held_runs() -> Iterator[HeldRuns]:
    """Holds the runs of models that are loaded meanwhile; lets all go in the end."""
    held = HeldRuns()

    class HeldSessions(Sessions):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.quick = False  # the event loop must not wait for them

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
