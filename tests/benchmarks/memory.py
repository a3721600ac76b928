"""Memory of the statistics: `python -m tests.benchmarks.memory` prints what a fresh server holds with probes, and without.

Each row is a server process of both shipped models at default settings, whose sessions have all run at batch 1 and 8:

    without probes     the same models with no layers in their manifests, so that nothing can be watched
    with probes        as shipped, after requests without statistics and with statistics=summary and channels
    opened sessions    the same, after statistics=histogram and what-if have opened the graphs too

So that each run holds the wanted number of inputs, runs wait for more, and the counters of the server are asked whether they did.
The table shows the medians of the rounds; Linux only (/proc).
"""

import argparse
import base64
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from models.artifact import Artifact, load_artifact
from service.engine.threads import available_cpus
from tests.benchmarks.peers import inputs
from tests.benchmarks.peers.classifier import SHIPPED, Item
from tests.benchmarks.rounds import Spread
from tests.benchmarks.serving import changed, serving

_BATCH = 8
_KINDS = ("without probes", "with probes", "opened sessions")
_LEVELS = ("summary", "channels")
# as many runs of 8 as there are threads make one request; a run waits until all of it has come
_SETTINGS = {
    "NORMSCOPE_MAX_BATCH_SIZE": str(_BATCH * available_cpus()),
    "NORMSCOPE_MAX_QUEUE_DELAY_MS": "500",
}
_WITHOUT = {"NORMSCOPE_STATISTICS_SAMPLE": "1"}  # one graph for all requests


class Client:
    """Asks one model of a server for everything that a row needs."""

    def __init__(self, http: httpx.Client, artifact: Artifact) -> None:
        name = artifact.manifest.name
        self._http, self._name, self._path = http, name, f"/v1/models/{name}"
        self._items: list[Item] = list(inputs.texts() if name == "encoder" else inputs.photos())
        self._norm = next(layer.layer for layer in artifact.manifest.layers if layer.kind != "residual_add")

    def predict(self, level: str | None) -> None:
        """Runs of one input on all threads, and of 8 on one."""
        path = f"{self._path}/predict" + (f"?statistics={level}&layers={self._norm}" if level else "")
        for count in (1, _BATCH * available_cpus()):
            for _ in range(3):
                self._post(path, {"inputs": self._inputs(count)})

    def open(self) -> None:
        """The opened graph, and one with another formula."""
        self._post(f"{self._path}/predict?statistics=histogram&layers={self._norm}", {"inputs": self._inputs(1)})
        change = {"layer": self._norm, "normalization": "none"}
        self._post(f"{self._path}/whatif?layers={self._norm}", {"inputs": self._inputs(1), "changes": [change]})

    def check(self) -> None:
        """Ends the process where a batch size was not run."""
        (counted,) = self._http.get(f"/v2/models/{self._name}/stats").raise_for_status().json()["model_stats"]
        sizes = {each["batch_size"] for each in counted["batch_stats"]}
        if not {1, _BATCH} <= sizes:
            raise SystemExit(f"{self._name} ran batches of {sorted(sizes)}, not of 1 and {_BATCH}; run this on a quieter machine")

    def _inputs(self, count: int) -> list[str]:
        chosen = [self._items[i % len(self._items)] for i in range(count)]
        return [item if isinstance(item, str) else base64.b64encode(item).decode() for item in chosen]

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        self._http.post(path, json=body).raise_for_status()


def measure(kind: str, repository: Path, folder: Path, artifacts: list[Artifact]) -> tuple[float, float]:
    """(PSS, RSS) in MB of a fresh server."""
    settings = _SETTINGS | (_WITHOUT if kind == "without probes" else {})
    with serving(repository, folder, settings) as server, httpx.Client(base_url=server.url, timeout=120) as http:
        for artifact in artifacts:
            client = Client(http, artifact)
            for level in (None, *(() if kind == "without probes" else _LEVELS)):
                client.predict(level)
            if kind == "opened sessions":
                client.open()
            client.check()
        return server.memory_mb(), server.memory_mb("Rss")


def main() -> None:
    """Prints one row for each kind of server."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each kind")
    rounds = parser.parse_args().rounds
    print(f"{available_cpus()} threads; {inputs.origin()}")
    artifacts = [load_artifact(folder / "1") for folder in sorted(SHIPPED.iterdir())]
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in _KINDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for artifact in artifacts:
            changed(artifact, folder / "bare", layers=[])
        for number in range(rounds):
            for kind in _KINDS:
                repository = folder / "bare" if kind == "without probes" else SHIPPED
                found[kind].append(measure(kind, repository, folder / f"{kind}-{number}", artifacts))
    print("| server | PSS MB | RSS MB | RSS, ratio to without probes |\n| --- | --- | --- | --- |")
    for kind, measured in found.items():
        ratio = Spread.of([rss / base for (_, rss), (_, base) in zip(measured, found["without probes"], strict=True)])
        pss, rss = (statistics.median(each) for each in zip(*measured, strict=True))
        print(f"| {kind} | {pss:.0f} | {rss:.0f} | {ratio} |")


if __name__ == "__main__":
    main()
