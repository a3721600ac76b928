"""A few timed requests beside the load: wrk cannot tell how long accepted and how long refused requests took, this client can."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.benchmarks.peers.wrk import HttpRequest


@dataclass(frozen=True)
class Probe:
    """One request: the status of its answer (0: none came) and how long it took."""

    status: int
    ms: float


async def probe(port: int, requests: Sequence[HttpRequest], per_second: float, running: Callable[[], bool]) -> list[Probe]:
    """Sends requests at a steady rate, whether earlier ones are answered or not, while `running` says so."""
    rendered = [request.render() for request in requests]
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    probes: list[Probe] = []

    async def send(data: bytes) -> None:
        start = time.perf_counter()
        while idle and idle[-1][0].at_eof():  # a server closes what has long been idle
            idle.pop()[1].close()
        try:
            connection = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
            status = await _exchange(*connection, data)
            idle.append(connection)
        except (OSError, asyncio.IncompleteReadError):
            status = 0
        probes.append(Probe(status, (time.perf_counter() - start) * 1000))

    due = time.perf_counter()
    count = 0
    async with asyncio.TaskGroup() as group:
        while running():
            group.create_task(send(rendered[count % len(rendered)]))
            count += 1
            due += 1 / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
    for _, writer in idle:
        writer.close()
    return probes


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> int:
    """Sends one request and reads its answer to the end -> the status."""
    writer.write(data)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next(line.partition(b":")[2] for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length))
    return int(head.split(b" ", 2)[1])
