"""What statistics over traffic cost under load: `python -m tests.benchmarks.storing` prints ratios to a service that takes none.

The encoder is served several times at once: without statistics, with the default share of them stored in a SQLite file, and
where PostgreSQL is installed in a server of our own (which does not wait for its disk). In every round each gets the load of wrk
in turn, long enough that it stores several times; the table shows the median of the ratios of all rounds, the least and the most.
"""

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from service.settings import Settings
from tests.benchmarks.peers import inputs
from tests.benchmarks.peers.classifier import SHIPPED
from tests.benchmarks.peers.wrk import Generator, HttpRequest, Load, check_installed
from tests.service.statistics.postgresql import Postgresql, programs
from tests.service.test_server import process, ready_url

_PATH = "/v1/models/encoder/predict"
_PLAIN = "no statistics"
_FLUSHES = 3


@contextmanager
def database() -> Iterator[str | None]:
    """The URL of a PostgreSQL; None where none is installed."""
    folder = programs()
    if folder is None:
        yield None
        return
    server = Postgresql(folder)
    try:
        server.start()
        yield server.url
    finally:
        server.remove()


def variants(folder: Path, url: str | None) -> dict[str, dict[str, str]]:
    """The settings of each service."""
    found = {_PLAIN: {"NORMSCOPE_STATISTICS_SAMPLE": "0"}, "SQLite file": {"NORMSCOPE_DATA_DIR": str(folder)}}
    return found if url is None else found | {"PostgreSQL": {"NORMSCOPE_DATABASE_URL": url}}


def row(name: str, rounds: list[dict[str, Load]]) -> str:
    """Of one service over all rounds; `!` marks refused or broken requests."""
    loads = [one[name] for one in rounds]
    ratios = [one[name].per_second / one[_PLAIN].per_second for one in rounds]
    failed = " !" if any(load.refused or load.broken for load in loads) else ""
    p50, p99 = (statistics.median(getattr(load, field) for load in loads) for field in ("p50_ms", "p99_ms"))
    speed = statistics.median(load.per_second for load in loads)
    shown = f"{statistics.median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f}"
    return f"| {name} | {speed:.0f}{failed} | {p50:.1f} | {p99:.1f} | {shown} |"


def main() -> None:
    """Prints one row for each service."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.storing", description=__doc__)
    flush_s = Settings.model_fields["statistics_flush_s"].default
    parser.add_argument("--seconds", type=int, default=int(_FLUSHES * flush_s), help="of load on each service in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--connections", type=int, default=64)
    arguments = parser.parse_args()
    check_installed()
    with tempfile.TemporaryDirectory() as name, database() as url, ExitStack() as stack:
        folder = Path(name)
        repository = folder / "repository"
        shutil.copytree(SHIPPED / "encoder", repository / "encoder")
        generator = Generator(folder, [HttpRequest.of_json(_PATH, {"inputs": text}) for text in inputs.texts()])
        services = {
            title: ready_url(stack.enter_context(process("--port", "0", NORMSCOPE_MODEL_REPOSITORY=str(repository), **environment)))
            for title, environment in variants(folder / "data", url).items()
        }
        rounds = [
            {title: generator.run(service, arguments.connections, arguments.seconds) for title, service in services.items()}
            for _ in range(arguments.rounds)
        ]
    print(f"{arguments.rounds} rounds of {arguments.seconds} s, stored every {flush_s:g} s, {arguments.connections} connections\n")
    print("| statistics | requests/s | p50 ms | p99 ms | ratio | of the rounds |\n| --- | --- | --- | --- | --- | --- |")
    for title in services:
        print(row(title, rounds), flush=True)


if __name__ == "__main__":
    main()
