"""A server process with all its descendants: started on a free port, watched, measured and ended. Linux only (/proc)."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_GRACE_S = 20


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]

    def memory_mb(self, kind: Literal["Pss", "Rss"] = "Pss") -> float:
        """Of the whole process tree: proportional set size (PSS), shared pages counted once; or resident set size (RSS)."""
        return sum(_kilobytes(pid, kind) for pid in tree(self.process.pid)) / 1024


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def tree(root: int) -> list[int]:
    """The process and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # has ended meanwhile
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _kilobytes(pid: int, kind: str) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # has ended meanwhile
        return 0
    return next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith(f"{kind}:")), 0)


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], folder: Path, port: int) -> Iterator[Server]:
    """A server process, its output in `folder`/server.log; at the end it is asked to stop, what is left after a while is killed."""
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=os.environ | environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", process)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    family = tree(process.pid)
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline and any(_alive(pid) for pid in family):
        process.poll()  # reaps it
        family = list(dict.fromkeys(family + tree(process.pid)))
        time.sleep(0.1)
    for pid in family:
        if _alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
