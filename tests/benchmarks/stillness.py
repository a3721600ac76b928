"""Notices when the machine, not the measured program, stands still: a virtual machine may be paused for many seconds."""

import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

_LONGEST_S = 1.0
_ATTEMPTS = 5

T = TypeVar("T")

# a process of its own, which wants next to nothing: what keeps it from running for a second keeps everybody
_WATCHER = """
import select, sys, time
print(flush=True)
last, longest = time.perf_counter(), 0.0
while not select.select([sys.stdin], [], [], 0.05)[0]:
    now = time.perf_counter()
    last, longest = now, max(longest, now - last)
print(max(longest, time.perf_counter() - last))
"""


class Stillness:
    """Watches while the context is open."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([sys.executable, "-c", _WATCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None  # a pipe, as asked
        self._process.stdout.readline()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        output, _ = self._process.communicate("end")
        self.longest_s = float(output)


def undisturbed(measure: Callable[[], T]) -> T:
    """The result of a measurement during which the machine did not stand still for a second; the last one after five attempts."""
    for _ in range(_ATTEMPTS):
        with Stillness() as stillness:
            result = measure()
        if stillness.longest_s < _LONGEST_S:
            break
        print(f"measured again: the machine stood still for {stillness.longest_s:.1f} s", file=sys.stderr, flush=True)
    return result
