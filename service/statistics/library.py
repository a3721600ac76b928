"""The compiled operator of `observe.c`, where a compiler was at hand; without it numpy reduces, several times slower.

`python -m service.statistics.library` compiles it. `make serve` and the image do so by themselves. ONNX Runtime loads the library
into the sessions that need it; it needs headers neither of Python nor of ONNX Runtime.
"""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("observe.c")
_LIBRARY = _SOURCE.with_suffix(".so")
# without the last, gcc clears a few numbers by an instruction that takes longer than all that follows on them
_FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-tree-loop-distribute-patterns")
_log = logging.getLogger("normscope")


@cache
def library() -> Path | None:
    """The library, if it was built and can be loaded."""
    if not _LIBRARY.exists():
        _log.info("numpy reduces the statistics, several times slower; python -m %s compiles what is faster", __name__)
        return None
    try:
        ctypes.CDLL(str(_LIBRARY))
    except OSError as error:  # built for another machine
        _log.warning("%s cannot be loaded, numpy reduces instead: %s", _LIBRARY.name, error)
        return None
    return _LIBRARY


def build(to: Path | None = None, *flags: str) -> str:
    """Compiles the library, by default beside its source, and tells what came of it; no compiler, or one that fails, is no error.

    `-DNORMSCOPE_PLAIN` among the further flags leaves out what needs a processor with AVX2.
    """
    to = to or _LIBRARY
    named = os.environ.get("CC", "")
    compiler = next((path for name in (named, "cc", "gcc", "clang") if name and (path := shutil.which(name))), None)
    if compiler is None:
        return "no C compiler: numpy computes the statistics, several times slower"
    fresh = to.with_suffix(f".{os.getpid()}")
    try:
        done = subprocess.run([compiler, *_FLAGS, *flags, "-o", fresh, _SOURCE, "-lm"], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{compiler} failed: numpy computes the statistics, several times slower\n{done.stderr.strip()}"
        fresh.replace(to)  # at once, so that a service that starts meanwhile sees all of it or nothing
    finally:
        fresh.unlink(missing_ok=True)
    return f"{to.name} is built"


if __name__ == "__main__":
    sys.stdout.write(build() + "\n")
