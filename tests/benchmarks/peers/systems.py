"""The systems that are compared: how each is started, what it is sent, and where its answer holds the label."""

import base64
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.arrangement import MAX_BATCH_SIZE, Arrangement
from tests.benchmarks.peers.classifier import SHIPPED, Item
from tests.benchmarks.peers.environments import ROOT, environment
from tests.benchmarks.peers.processes import Server, free_port, running
from tests.benchmarks.peers.wrk import HttpRequest

Command = tuple[list[str], dict[str, str]]
"""What to run, and what to add to its environment."""


@dataclass(frozen=True)
class System:
    """One server under comparison."""

    name: str
    command: Callable[[str, int, Path, Arrangement], Command]
    """(model, port, empty folder, arrangement) -> command"""
    request: Callable[[str, Item], HttpRequest]
    """(model, one photo or text) -> request"""
    label: Callable[[Any], str]
    """the JSON of the answer -> the best label"""
    arrangements: tuple[Arrangement, ...]
    """Where there are several, the fastest of them is measured."""

    @contextmanager
    def serving(self, model: str, arrangement: Arrangement, folder: Path) -> Iterator[Server]:
        """The system, started with this model alone in an empty folder; it may not be ready yet."""
        port = free_port()
        command, extra = self.command(model, port, folder, arrangement)
        variables = arrangement.environment | extra | {"BENCH_MODEL": model, "BENCH_PORT": str(port), "PYTHONPATH": str(ROOT)}
        with running(command, variables, folder, port) as server:
            yield server


def _file_or_json(path: str, model: str, item: Item) -> HttpRequest:
    """A photo as the body itself, a text in JSON."""
    return HttpRequest(path, "image/jpeg", item) if isinstance(item, bytes) else HttpRequest.of_json(path, {"inputs": item})


def _text(item: Item) -> str:
    return base64.b64encode(item).decode() if isinstance(item, bytes) else item


def _script(peer: str, *arguments: str) -> list[str]:
    return [str(environment(peer) / "bin" / arguments[0]), *arguments[1:]]


def _module(peer: str, name: str) -> list[str]:
    return _script(peer, "python", "-m", f"tests.benchmarks.peers.{name}")


def _normscope(settings: dict[str, str], model: str, port: int, folder: Path, _: Arrangement) -> Command:
    repository = folder / "repository"
    shutil.copytree(SHIPPED / model / "1", repository / model / "1", dirs_exist_ok=True)
    command = [sys.executable, "-m", "service", "--port", str(port)]
    return command, {"NORMSCOPE_MODEL_REPOSITORY": str(repository)} | settings


def _litserve(model: str, port: int, folder: Path, arrangement: Arrangement) -> Command:
    return _module("litserve", "litserve_app"), {}


def _bentoml(model: str, port: int, folder: Path, arrangement: Arrangement) -> Command:
    service = "tests.benchmarks.peers.bentoml_app:Served"
    command = _script(
        "bentoml", "bentoml", "serve", service, "--working-dir", str(ROOT), "--host", "127.0.0.1", "--port", str(port)
    )
    return command, {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder)}


def _mlserver(model: str, port: int, folder: Path, arrangement: Arrangement) -> Command:
    settings = {
        "name": model,
        "implementation": "tests.benchmarks.peers.mlserver_app.Served",
        "max_batch_size": MAX_BATCH_SIZE[model],
        "max_batch_time": arrangement.wait_ms / 1000,
    }
    (folder / "model-settings.json").write_text(json.dumps(settings))
    return _script("mlserver", "mlserver", "start", str(folder)), {
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_HTTP_PORT": str(port),
        "MLSERVER_GRPC_PORT": str(free_port()),
        "MLSERVER_METRICS_PORT": str(free_port()),
        "MLSERVER_PARALLEL_WORKERS": str(arrangement.workers),
        "MLSERVER_DEBUG": "false",  # on by default; it writes a line for each request
        "MLSERVER_LOGGING_SETTINGS": json.dumps({"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}}),
    }


def _mlserver_request(model: str, item: Item) -> HttpRequest:
    content = {"content_type": "base64" if isinstance(item, bytes) else "str"}
    tensor = {"name": "inputs", "shape": [1, 1], "datatype": "BYTES", "parameters": content, "data": [_text(item)]}
    return HttpRequest.of_json(f"/v2/models/{model}/infer", {"inputs": [tensor]})


def _ray(model: str, port: int, folder: Path, arrangement: Arrangement) -> Command:
    return _module("ray", "ray_app"), {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # both from its guide to high throughput
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


# On two cores either one run has both, or two processes have one each: the documentation of every peer recommends as many
# workers as cores for work that Python holds up, and fewer where the runtime has threads of its own. Both are tried.
_WORKERS = (
    Arrangement(workers=2, threads=1),
    Arrangement(workers=1, threads=2),
    Arrangement(workers=1, threads=2, spinning=True),
)
_LONGER = (Arrangement(workers=2, threads=1, wait_ms=10), Arrangement(workers=1, threads=2, wait_ms=10))

SYSTEMS = (
    System(
        "NormScope, no statistics",
        partial(_normscope, {"NORMSCOPE_STATISTICS_SAMPLE": "0"}),
        lambda model, item: _file_or_json(f"/v1/models/{model}/predict?top_k=1", model, item),
        lambda answer: str(answer["predictions"][0]["labels"][0]["label"]),
        _WORKERS[:1],  # as shipped: it does not read the arrangement
    ),
    System(
        "NormScope, as shipped",
        partial(_normscope, {}),
        lambda model, item: _file_or_json(f"/v1/models/{model}/predict?top_k=1", model, item),
        lambda answer: str(answer["predictions"][0]["labels"][0]["label"]),
        _WORKERS[:1],
    ),
    System(
        "LitServe",
        _litserve,
        partial(_file_or_json, "/predict"),
        lambda answer: str(answer["label"]),
        _WORKERS + _LONGER,
    ),
    System(
        "BentoML",
        _bentoml,
        lambda model, item: HttpRequest.of_json("/predict", {"inputs": [_text(item)]}),
        lambda answer: str(answer[0]),
        _WORKERS,  # its wait adapts itself
    ),
    System(
        "MLServer",
        _mlserver,
        _mlserver_request,
        lambda answer: str(answer["outputs"][0]["data"][0]),
        (Arrangement(workers=0, threads=2), *_WORKERS, *_LONGER),  # 0: no pool of processes
    ),
    System(
        "Ray Serve",
        _ray,
        partial(_file_or_json, "/"),
        lambda answer: str(answer["label"]),
        _WORKERS + _LONGER,  # 10 ms is its default
    ),
)
