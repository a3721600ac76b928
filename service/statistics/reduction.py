"""The compiled reductions of `reduce.c`, where a compiler was at hand; without them numpy does the same work, several times slower.

`python -m service.statistics.reduction` compiles them. `make serve` and the image do so by themselves. The library is plain C
behind `ctypes`, which leaves the interpreter to other threads during a call, and needs no headers of Python.
"""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SOURCE = Path(__file__).with_name("reduce.c")
_LIBRARY = _SOURCE.with_suffix(".so")
_FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC", "-ffp-contract=off")
_PLANES = 6
_log = logging.getLogger("normscope")


@cache
def compiled() -> bool:
    """Whether the compiled reductions can be used."""
    return _library() is not None


def reduce_rows(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """x (G, M) in one piece -> (6, G): mean, m2, minimum, maximum, zeros and nonfinite of each row.

    Where nonfinite is above 0, the first four are meaningless.
    """
    groups, m = x.shape
    out = np.empty((_PLANES, groups))
    library = _library()
    assert library is not None  # the caller has asked `compiled`
    library.reduce_rows(x.ctypes.data, groups, m, out.ctypes.data)
    return out


def reduce_tokens(x: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """x (N, M, C) in one piece, mask (N, M) -> (6, N, C): the same of each sample and channel, over tokens whose mask is true."""
    n, m, c = x.shape
    out = np.empty((_PLANES, n, c))
    library = _library()
    assert library is not None
    library.reduce_tokens(x.ctypes.data, None if mask is None else mask.ctypes.data, n, m, c, out.ctypes.data)
    return out


@cache
def _library() -> ctypes.CDLL | None:
    if not _LIBRARY.exists():
        return None
    try:
        library = ctypes.CDLL(str(_LIBRARY))
    except OSError as error:  # built for another machine
        _log.warning("%s cannot be loaded, numpy reduces instead: %s", _LIBRARY.name, error)
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.reduce_rows.argtypes = (pointer, size, size, pointer)
    library.reduce_tokens.argtypes = (pointer, pointer, size, size, size, pointer)
    library.reduce_rows.restype = library.reduce_tokens.restype = None
    return library


def build() -> str:
    """Compiles the library beside its source, and tells what came of it; a compiler that is missing or fails is no error."""
    named = os.environ.get("CC", "")
    compiler = next((path for name in (named, "cc", "gcc", "clang") if name and (path := shutil.which(name))), None)
    if compiler is None:
        return "no C compiler: numpy computes the statistics, several times slower"
    fresh = _LIBRARY.with_suffix(f".{os.getpid()}")
    try:
        done = subprocess.run([compiler, *_FLAGS, "-o", fresh, _SOURCE, "-lm"], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{compiler} failed: numpy computes the statistics, several times slower\n{done.stderr.strip()}"
        fresh.replace(_LIBRARY)  # at once, so that a service that starts meanwhile sees all of it or nothing
    finally:
        fresh.unlink(missing_ok=True)
    return f"{_LIBRARY.name} is built"


if __name__ == "__main__":
    sys.stdout.write(build() + "\n")
