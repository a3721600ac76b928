"""NormScope at about ten times its capacity: what accepted and refused requests wait, what it costs in memory, how it recovers.

wrk sends nine tenths of the load over many connections that pause between their requests, so that it comes at about the wanted
rate whether it is refused or not. The last tenth (at most 200 requests per second) is timed by `prober`, because wrk reports
accepted and refused requests together.
"""

import asyncio
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from service.settings import Settings
from tests.benchmarks.peers.points import Work, WrongAnswerError, await_start
from tests.benchmarks.peers.prober import Probe, probe
from tests.benchmarks.peers.processes import Server
from tests.benchmarks.peers.systems import System
from tests.benchmarks.peers.wrk import Generator, HttpRequest, finish
from tests.benchmarks.stillness import Stillness

_TIMES = 10
_CONNECTIONS = 512  # four times the queue's bound
_MOST_PROBES_PER_SECOND = 200
_SLICES = 5


def report(system: System, work: Work, seconds: int, overload_seconds: int) -> None:
    """Runs the phases and prints what came of each.

    Raises:
        WrongAnswerError: the system does not start or does not answer.
    """
    dense = work.connections[-1]
    requests = [system.request(work.model, item) for item in work.items]
    with tempfile.TemporaryDirectory() as name, system.serving(work.model, system.arrangements[0], Path(name)) as server:
        await_start(system, work, server, Path(name))
        generator = Generator(Path(name), requests)
        generator.run(server.url, dense, min(3, seconds))
        capacity = generator.run(server.url, dense, seconds).per_second
        if not capacity:
            raise WrongAnswerError(f"{system.name} answers nothing at {dense} connections")
        before_mb = server.memory_mb()
        free = _CONNECTIONS - Settings.model_fields["max_queue"].default  # the others wait for their answer
        pause_ms = round(1000 * free / (capacity * (_TIMES - 1)))
        with Stillness() as stillness:
            pressure = generator.start(server.url, _CONNECTIONS, overload_seconds, pause_ms)
            probed, memory_mb = asyncio.run(_observe(server, requests, min(capacity, _MOST_PROBES_PER_SECOND), pressure))
            load = finish(pressure)
        slices = [generator.run(server.url, dense, 1) for _ in range(_SLICES)]
        after_mb = server.memory_mb()
    offered = load.requests / load.seconds + len(probed) / load.seconds
    print(f"\n{work.model}, {system.name}, overload for {overload_seconds} s")
    print(f"- capacity before: {capacity:.0f}/s at {dense} connections")
    print(f"- offered: {offered:.0f}/s ({offered / capacity:.1f} times the capacity) over {_CONNECTIONS} connections")
    print(f"- accepted by wrk's count: {load.per_second:.0f}/s, refused: {load.refused}, broken connections: {load.broken}")
    _print_times("accepted (2xx)", [p.ms for p in probed if 200 <= p.status < 300])
    _print_times("refused (429, 503)", [p.ms for p in probed if p.status in (429, 503)])
    others = [p.status for p in probed if p.status not in (429, 503) and not 200 <= p.status < 300]
    print(f"- other answers: {len(others)} {sorted(set(others))}")
    bound_ms = 1000 * (_CONNECTIONS - free + 1) / capacity
    print(f"- the queue's bound and one run at the capacity before: {bound_ms:.0f} ms")
    print(f"- the machine itself stood still for at most {stillness.longest_s * 1000:.0f} ms")
    print(f"- memory (PSS): {before_mb:.0f} MB before, {max(memory_mb):.0f} MB at most during, {after_mb:.0f} MB after")
    shares = ", ".join(f"{part.per_second / capacity:.2f}{f' ({part.refused} refused)' if part.refused else ''}" for part in slices)
    print(f"- share of the capacity in the seconds after the end: {shares}")
    back = next((i for i, part in enumerate(slices) if part.per_second >= 0.9 * capacity), None)
    print(f"- 0.9 of the capacity is back in second {'(not within the slices)' if back is None else back + 1} after the end")


async def _observe(
    server: Server, requests: Sequence[HttpRequest], per_second: float, pressure: subprocess.Popen[str]
) -> tuple[list[Probe], list[float]]:
    """(probes, memory in MB once a second) until the pressure ends."""
    memory_mb: list[float] = []

    async def watch() -> None:
        while pressure.poll() is None:
            memory_mb.append(await asyncio.to_thread(server.memory_mb))
            await asyncio.sleep(1)

    port = int(server.url.rpartition(":")[2])
    probes, _ = await asyncio.gather(probe(port, requests, per_second, lambda: pressure.poll() is None), watch())
    return probes, memory_mb


def _print_times(name: str, ms: list[float]) -> None:
    if ms:
        p50, p99 = np.percentile(ms, [50, 99])
        print(f"- {name}: {len(ms)} timed, p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {max(ms):.1f} ms")
    else:
        print(f"- {name}: none")
