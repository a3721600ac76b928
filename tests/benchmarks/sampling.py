"""What sampling costs: `python -m tests.benchmarks.sampling` prints the throughput at default settings, and without statistics.

Two servers of the shipped models run all the time, one with NORMSCOPE_STATISTICS_SAMPLE=0, one at default settings; wrk sends texts
or photos to one after the other, in every round in the other order. The table shows the medians of the rounds, and of the ratios of
one round the median with the first and third quartile. Requests ask for no statistics.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from service.settings import Settings
from tests.benchmarks.peers import inputs
from tests.benchmarks.peers.classifier import SHIPPED
from tests.benchmarks.peers.processes import Server
from tests.benchmarks.peers.wrk import Generator, HttpRequest, Load, check_installed
from tests.benchmarks.rounds import Spread
from tests.benchmarks.serving import serving

_CONNECTIONS = {"encoder": 64, "resnet50": 8}
_WARM_UP_S = 2


def requests_of(model: str) -> list[HttpRequest]:
    """Texts or photos, one in each request."""
    path = f"/v1/models/{model}/predict"
    if model == "encoder":
        return [HttpRequest.of_json(path, {"inputs": text}) for text in inputs.texts()]
    return [HttpRequest(path, "image/jpeg", photo) for photo in inputs.photos()]


def compare(generator: Generator, servers: Sequence[Server], connections: int, rounds: int, seconds: int) -> list[list[Load]]:
    """The loads of each server, one for each round."""
    loads: list[list[Load]] = [[] for _ in servers]
    for server in servers:
        generator.run(server.url, connections, min(_WARM_UP_S, seconds))
    for number in range(rounds):
        order = list(range(len(servers)))
        for i in order if number % 2 == 0 else reversed(order):
            loads[i].append(generator.run(servers[i].url, connections, seconds))
    return loads


def main() -> None:
    """Prints one row for each model."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sampling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=10, help="of each run")
    parser.add_argument("--models", nargs="+", choices=list(_CONNECTIONS), default=list(_CONNECTIONS))
    arguments = parser.parse_args()
    check_installed()
    print(inputs.origin())
    print("| model, connections | requests/s, nothing sampled | as shipped | as shipped / nothing sampled | errors |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        shares = ("0", str(Settings.model_fields["statistics_sample"].default))
        servers = [
            stack.enter_context(serving(SHIPPED, folder / f"sample-{share}", {"NORMSCOPE_STATISTICS_SAMPLE": share}))
            for share in shares
        ]
        for model in arguments.models:
            (folder / model).mkdir()
            generator = Generator(folder / model, requests_of(model))
            connections = _CONNECTIONS[model]
            off, default = compare(generator, servers, connections, arguments.rounds, arguments.seconds)
            ratio = Spread.of([one.per_second / other.per_second for one, other in zip(default, off, strict=True)])
            rates = [f"{statistics.median(load.per_second for load in loads):.0f}" for loads in (off, default)]
            errors = sum(load.refused + load.broken for load in (*off, *default))
            print(f"| {model}, {connections} | {rates[0]} | {rates[1]} | {ratio} | {errors} |", flush=True)


if __name__ == "__main__":
    main()
