"""How long queries over stored traffic take: `python -m tests.benchmarks.query` prints a table.

A database of 30 days is made for both shipped models, merged as the service merges by default: minutes of the last hours, hours of
the last week, days before; a million requests, of which a tenth was sampled, with made-up values. The service serves it, and each
query is asked over HTTP in several rounds. These begin some seconds after the models are ready, when the service has merged in the
background what queries merge otherwise. The table shows the first answer, and of the others the median and the slowest.
"""

import argparse
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from models.artifact import load_artifact
from models.statistics.layers import SideLayout
from models.statistics.moments import Floats, Moments
from service.app import create_app
from service.server import Server
from service.settings import Settings
from service.statistics.archive import write_parts
from service.statistics.database import Database
from service.statistics.pending import StoredPart, new_part
from service.statistics.retention import DAY_S, HOUR_S, Retention
from service.statistics.series import Series
from service.statistics.sketches import Sketches
from service.statistics.store import FILE
from service.statistics.window import WindowMoments, single_values
from tests.benchmarks.peers.classifier import SHIPPED

_MODELS = ("encoder", "resnet50")
_DAYS = 30
_BLOCK = 1000
_QUERIES = {
    "the last day (default)": "statistics",
    "30 days": "statistics?since=-30d",
    "30 days by day": "statistics?since=-30d&step=1d",
    "30 days, median": "statistics?since=-30d&quantiles=0.5",
    "30 days by day, median": "statistics?since=-30d&step=1d&quantiles=0.5",
    "15 days beside the 15 before": "statistics/compare?a=-15d..now&b=-30d..-15d",
}


def windows(now: int) -> list[tuple[int, int]]:
    """Start and seconds of all windows of the last days, as they have been merged by now."""
    retention = Retention.parse(str(Settings.model_fields["statistics_retention"].default))
    minutes = (now - retention.windows_s) // HOUR_S * HOUR_S
    hours = (now - retention.hours_s) // DAY_S * DAY_S
    begin = (now - _DAYS * DAY_S) // DAY_S * DAY_S
    spans = (range(begin, hours, DAY_S), DAY_S), (range(hours, minutes, HOUR_S), HOUR_S), (range(minutes, now - 60, 60), 60)
    return [(start, seconds) for starts, seconds in spans for start in starts]


def made_part(series: Series, start: int, seconds: int, requests: int, values: Floats) -> StoredPart:
    """A window in which the sampled requests had these values (n, V)."""
    sketches = Sketches(series.values)
    for block in range(0, len(values), _BLOCK):
        sketches.update(values[block : block + _BLOCK])
    elements = single_values(values[:, : series.sides]).pool(axis=0)
    none = np.zeros(series.sides)
    of_values = single_values(values).pool(axis=0)
    moments = WindowMoments(Moments(**vars(elements)), none, of_values)
    return StoredPart(start, seconds, new_part(), requests, len(values), moments.to_bytes(), sketches.to_bytes())


def fill(database: Database, model: str, requests: int, sample: float, now: int) -> None:
    """Stores the traffic of 30 days."""
    artifact = load_artifact(SHIPPED / model / "1")
    series = Series.of(artifact.manifest, SideLayout(tuple(artifact.manifest.layers)))
    number = database.add_series(series)
    rng = np.random.default_rng(0)
    rate = requests / (_DAYS * DAY_S)
    for start, seconds in windows(now):
        served = int(rng.poisson(rate * seconds))
        values = rng.standard_normal((max(1, round(sample * served)), series.values))
        with database.writing() as connection:
            write_parts(connection, number, [made_part(series, start, seconds, served, values)], [])


@contextmanager
def serving(folder: Path) -> Iterator[httpx.Client]:
    """A client of the service over the shipped models and this data folder."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(Settings(model_repository=SHIPPED, data_dir=folder))
    server = Server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=120) as client:
            app.state.normscope.repository.settled.wait()
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def main() -> None:
    """Prints one row for each model and query."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.query", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000, help="to each model in 30 days")
    parser.add_argument("--sample", type=float, default=0.1, help="share of them that was sampled")
    parser.add_argument("--rounds", type=int, default=9, help="of all queries, two at least")
    parser.add_argument("--after", type=float, default=3, help="seconds from ready models to the first query")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, now = Path(name), int(time.time())
        database = Database.file(folder / FILE)
        database.migrate()
        for model in _MODELS:
            fill(database, model, arguments.requests, arguments.sample, now)
        database.close()
        with serving(folder) as client:
            time.sleep(arguments.after)
            took: dict[tuple[str, str], list[float]] = {(model, title): [] for model in _MODELS for title in _QUERIES}
            for _ in range(arguments.rounds):
                for (model, title), times in took.items():
                    began = time.perf_counter()
                    client.get(f"/v1/models/{model}/{_QUERIES[title]}").raise_for_status()
                    times.append((time.perf_counter() - began) * 1000)
        megabytes = (folder / FILE).stat().st_size / 1e6
    print(f"{arguments.requests} requests to each model, {megabytes:.0f} MB, {arguments.rounds} rounds\n")
    print("| model | query | first ms | p50 ms | most ms |\n| --- | --- | --- | --- | --- |")
    for (model, title), (first, *others) in took.items():
        print(f"| {model} | {title} | {first:.0f} | {statistics.median(others):.0f} | {max(others):.0f} |")


if __name__ == "__main__":
    main()
