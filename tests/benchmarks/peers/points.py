"""One system under load: is it right, how fast is it, how much memory does it hold."""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.benchmarks.peers.arrangement import Arrangement
from tests.benchmarks.peers.classifier import Item
from tests.benchmarks.peers.processes import Server
from tests.benchmarks.peers.systems import System
from tests.benchmarks.peers.wrk import Generator, Load

_START_S = 240
_WARM_UP_S = 3


@dataclass(frozen=True)
class Work:
    """A model with what it is asked and the right answers."""

    model: str
    items: Sequence[Item]
    labels: Sequence[str]
    connections: tuple[int, ...]


class WrongAnswerError(RuntimeError):
    """A system that does not start, or does not answer what the model says."""


def measured(
    system: System, work: Work, arrangement: Arrangement, connections: Sequence[int], seconds: int
) -> tuple[list[Load], float]:
    """(load of each number of connections, largest PSS in MB after any of them) of a freshly started system.

    Raises:
        WrongAnswerError: it does not start, or an answer is wrong.
    """
    with tempfile.TemporaryDirectory() as name, system.serving(work.model, arrangement, Path(name)) as server:
        await_start(system, work, server, Path(name))
        _check_answers(system, work, server)
        generator = Generator(Path(name), [system.request(work.model, item) for item in work.items])
        generator.run(server.url, max(connections), min(_WARM_UP_S, seconds))
        loads, memory_mb = [], 0.0
        for count in connections:
            loads.append(generator.run(server.url, count, seconds))
            memory_mb = max(memory_mb, server.memory_mb())
        return loads, memory_mb


def await_start(system: System, work: Work, server: Server, folder: Path) -> None:
    """Waits for the first good answer.

    Raises:
        WrongAnswerError: none came in time; shows the end of the server's log.
    """
    request = system.request(work.model, work.items[0])
    deadline = time.monotonic() + _START_S
    state = "no answer"
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            answer = httpx.post(server.url + request.path, content=request.body, headers=_headers(request.content_type), timeout=30)
            if answer.status_code == 200:
                return
            state = f"{answer.status_code} {answer.text[:300]}"
        except httpx.TransportError as error:
            state = repr(error)
        time.sleep(0.2)
    tail = (folder / "server.log").read_text(errors="replace")[-2000:]
    raise WrongAnswerError(f"{system.name} has ended, or is not ready after {_START_S} s ({state}); its log ends with:\n{tail}")


def _headers(content_type: str) -> dict[str, str]:
    return {"Content-Type": content_type}


def _check_answers(system: System, work: Work, server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for item, expected in zip(work.items, work.labels, strict=True):
            request = system.request(work.model, item)
            answer = client.post(request.path, content=request.body, headers=_headers(request.content_type))
            if answer.status_code != 200 or system.label(json.loads(answer.content)) != expected:
                raise WrongAnswerError(f"{system.name} answers {answer.status_code} {answer.text[:300]} instead of {expected!r}")
