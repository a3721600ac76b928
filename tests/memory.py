"""The memory of a process of one's own: what models leave behind when they go, and what requests of many shapes do."""

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def held_mb() -> float:
    """Memory of this process in MB (1e6 bytes), its share of what several processes hold (PSS). Linux alone."""
    found = re.search(r"^Pss: *(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function of a module in a new interpreter: what this one has allocated and freed does not matter there."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return processes.submit(function, *arguments).result()
