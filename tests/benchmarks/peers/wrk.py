"""The load generator: wrk, a compiled one, the same for every system. Rendered HTTP requests in, counts and percentiles out."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.benchmarks.stillness import undisturbed

# Requests are rendered once, before the run: building them in Lua would slow the generator down. Each file entry is its length
# in decimal, a newline, and the bytes. `response` stays undefined, so that wrk does not hand every body to Lua.
_SCRIPT = """
local requests, at = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  for length in file:lines() do
    requests[#requests + 1] = file:read(tonumber(length))
  end
  file:close()
  local pause_ms = tonumber(args[2])
  if pause_ms > 0 then
    delay = function() return math.random(0, 2 * pause_ms) end
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format("@ %d %d %d %d %d %d\\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), e.status, e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What came of one run of the generator."""

    requests: int
    """answered, whatever the status"""
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int
    """answered with a status of 400 or more"""
    broken: int
    """connections that failed, and answers that did not come in time"""

    @property
    def per_second(self) -> float:
        """Requests that were answered well, in a second."""
        return (self.requests - self.refused) / self.seconds


@dataclass(frozen=True)
class HttpRequest:
    """A POST."""

    path: str
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, path: str, body: object) -> Self:
        """The body as JSON."""
        return cls(path, "application/json", json.dumps(body).encode())

    def render(self) -> bytes:
        headers = {"Host": "127.0.0.1", "Content-Type": self.content_type, "Content-Length": len(self.body), **self.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + self.body


def check_installed() -> None:
    """Ends the process with the name of the package where wrk is missing."""
    if shutil.which("wrk") is None:
        sys.exit("the load generator wrk is missing; install the package `wrk` (apt install wrk, brew install wrk)")


class Generator:
    """Sends a fixed set of requests, one after the other, again and again."""

    def __init__(self, folder: Path, requests: Sequence[HttpRequest]) -> None:
        """Writes the script and the rendered requests into the folder."""
        self._script = folder / "load.lua"
        self._script.write_text(_SCRIPT)
        self._requests = folder / "requests"
        rendered = [request.render() for request in requests]
        self._requests.write_bytes(b"".join(b"%d\n%s" % (len(request), request) for request in rendered))

    def start(self, url: str, connections: int, seconds: int, pause_ms: int = 0) -> subprocess.Popen[str]:
        """A run in the background; each connection sends its next request when the last is answered, after a mean pause."""
        command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", "30s", "-s", str(self._script)]
        command += [url, "--", str(self._requests), str(pause_ms)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, url: str, connections: int, seconds: int) -> Load:
        """A run to its end, during which the machine did not stand still."""
        return undisturbed(lambda: finish(self.start(url, connections, seconds)))


def finish(process: subprocess.Popen[str]) -> Load:
    """Waits for a run and reads its counts.

    Raises:
        RuntimeError: wrk ended without counts.
    """
    output, _ = process.communicate()
    for line in output.splitlines():
        if line.startswith("@ "):
            requests, duration_us, p50_us, p99_us, refused, broken = (int(part) for part in line[2:].split())
            return Load(requests, duration_us / 1e6, p50_us / 1000, p99_us / 1000, refused, broken)
    raise RuntimeError(f"wrk failed: {output.strip()[-500:]}")
