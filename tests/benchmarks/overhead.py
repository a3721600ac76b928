"""What the statistics cost: `python -m tests.benchmarks.overhead` prints ratios to the plain ONNX Runtime run of the same round.

All variants of a row run one after the other in every round, on the same input, so that a noisy machine disturbs them alike; each
twice, of which the second run counts. The table shows the median of the ratios, and their first and third quartile. Inputs are
those of the evaluation splits where the environment names local files (NORMSCOPE_IMAGENETTE, NORMSCOPE_CLINC150).

    as served           the run of the service without statistics
    summary, channels   the run with the statistics of all layers, and with those of all channels, as arrays
    HTTP                a request to a server that samples nothing
    HTTP, as shipped    a request without statistics at default settings, to one to the server that samples nothing
    HTTP, statistics    a request with statistics=summary
    torch, hooks        a torch run whose hooks take the same statistics of both sides of every norm
    second visit        samples in which something is not finite, and is counted in a second visit of the memory; all inputs, once
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from models.artifact import Artifact, load_artifact
from models.preprocessing import DEFAULT_MAX_PIXELS, ImagePreprocessing
from models.statistics.layers import BatchReducer, BatchStatistics, RunOutputs, SideLayout
from service.engine.graph import prepare
from service.engine.inputs import InputReader, TensorInput
from service.engine.memory import give_back_large_arrays
from service.engine.session import Feed, Session
from tests.benchmarks.peers import inputs
from tests.benchmarks.peers.classifier import SHIPPED, Item
from tests.benchmarks.rounds import Times, measure
from tests.benchmarks.serving import changed, serving
from tests.networks import network_of

_THREADS = 2
_OFF = {"NORMSCOPE_STATISTICS_SAMPLE": "0"}
_SETTINGS = {"NORMSCOPE_MAX_BATCH_SIZE": "32", "NORMSCOPE_THREADS": str(_THREADS)}


@dataclass(frozen=True)
class Sample:
    """The input of one run: as arrays, as tensors of torch, and as the body of a request."""

    feed: Feed
    tensors: Sequence[Tensor]
    body: Mapping[str, Any]


def samples(artifact: Artifact, items: Sequence[Item], batch: int) -> list[Sample]:
    """All items in batches; what is left over is left out."""
    reader = InputReader(artifact, DEFAULT_MAX_PIXELS)
    found = []
    for start in range(0, len(items) - batch + 1, batch):
        chosen = items[start : start + batch]
        photos, texts = [item for item in chosen if isinstance(item, bytes)], [item for item in chosen if isinstance(item, str)]
        rows = [reader.image(photo) for photo in photos] or [row for row in reader.texts(texts) if isinstance(row, TensorInput)]
        feed = reader.feed(rows)
        files = [("image", ("photo.jpg", photo)) for photo in photos]
        body: dict[str, Any] = {"files": files} if files else {"json": {"inputs": texts}}
        found.append(Sample(feed, [torch.from_numpy(array) for array in feed.values()], body))
    return found


class Watched:
    """The graph with probes and what makes statistics of its outputs, as the service holds them."""

    def __init__(self, artifact: Artifact) -> None:
        self._layout = SideLayout(tuple(artifact.manifest.layers))
        graph = prepare(artifact, "cpu", self._layout.reductions, self._layout.pairs)
        self._session, self._reducer = Session(graph, _THREADS), BatchReducer(self._layout, graph.observers)
        self._workers = ThreadPoolExecutor(_THREADS)

    def summary(self, sample: Sample) -> BatchStatistics:
        return self._run(sample, channels=False)

    def channels(self, sample: Sample) -> object:
        """The same, and those of all channels in one array."""
        return self._run(sample, channels=True)

    def _run(self, sample: Sample, *, channels: bool) -> BatchStatistics:
        result = self._session.run(sample.feed, channels=channels)
        return self._reducer.reduce(RunOutputs(result.tensors, result.summary, result.channels), sample.feed, self._workers)

    def second_visits(self, given: Sequence[Sample]) -> str:
        """How many of all samples hold something that is not finite: these alone are visited twice."""
        found = np.concatenate([self.summary(sample).pooled.nonfinite.sum(axis=1) for sample in given])
        return f"{np.count_nonzero(found)} of {len(found)}"


def usual_session(artifact: Artifact) -> onnxruntime.InferenceSession:
    """The graph as ONNX Runtime runs it by itself, but without spinning, which would take the cores from the next variant."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(artifact.model_path, options, providers=["CPUExecutionProvider"])


def with_hooks(network: nn.Module) -> Callable[[Sample], object]:
    """A torch run whose hooks take the same statistics of both sides of every norm."""

    def observe(x: Tensor) -> list[Tensor]:
        return [x.mean(), x.var(correction=0), x.amin(), x.amax(), x.norm(), (x == 0).float().mean()]

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        observe(arguments[0])
        observe(output)

    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.register_forward_hook(hook)
    return without_hooks(network)


def without_hooks(network: nn.Module) -> Callable[[Sample], object]:
    """A torch run."""

    def run(sample: Sample) -> object:
        with torch.inference_mode():
            return network(*sample.tensors)

    return run


def posting(client: httpx.Client, path: str) -> Callable[[Sample], object]:
    """A request."""
    return lambda sample: client.post(path, **sample.body).raise_for_status()


def row(artifact: Artifact, items: Sequence[Item], batch: int, rounds: int, off: httpx.Client, default: httpx.Client) -> str:
    """Measures one model and batch size."""
    given = samples(artifact, items, batch)
    path = f"/v1/models/{artifact.manifest.name}/predict"
    usual, plain, watched = usual_session(artifact), Session(prepare(artifact), _THREADS), Watched(artifact)
    compared: dict[str, Callable[[Sample], object]] = {
        "onnxruntime": lambda sample: usual.run(None, dict(sample.feed)),
        "as served": lambda sample: plain.run(sample.feed),
        "summary": watched.summary,
        "channels": watched.channels,
        "HTTP": posting(off, path),
        "HTTP, as shipped": posting(default, path),
        "HTTP, statistics": posting(off, f"{path}?statistics=summary"),
        "torch": without_hooks(network_of(artifact)),
        "torch, hooks": with_hooks(network_of(artifact)),
    }
    times = measure(compared, given, rounds)
    cells = [f"{artifact.manifest.name}, {batch}", f"{times.milliseconds('onnxruntime'):.1f}", *_ratios(times)]
    return f"| {' | '.join(cells)} | {watched.second_visits(given)} |"


def _ratios(times: Times) -> list[str]:
    bases = {"HTTP, as shipped": "HTTP"}
    return [str(times.ratio(name, bases.get(name, "onnxruntime"))) for name in times.seconds if name != "onnxruntime"]


def main() -> None:
    """Prints one row for each model and batch size."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="of the convolutional network; the encoder runs ten times as many")
    parser.add_argument("--models", nargs="+", choices=["encoder", "resnet50"], default=["resnet50", "encoder"])
    arguments = parser.parse_args()
    torch.set_num_threads(_THREADS)
    give_back_large_arrays()  # as the service does
    print(f"{_THREADS} threads, onnxruntime {onnxruntime.__version__}, torch {torch.__version__}; {inputs.origin()}")
    columns = ["model, batch", "ms", "as served", "summary", "channels", "HTTP", "HTTP, as shipped", "HTTP, statistics"]
    columns += ["torch", "torch, hooks"]
    print(f"| {' | '.join(columns)} | second visit |\n|{' --- |' * (len(columns) + 1)}")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        repository = folder / "repository"
        at_224 = {"preprocessing": ImagePreprocessing(resize=224, crop=224)}
        artifacts = {
            model: changed(load_artifact(SHIPPED / model / "1"), repository, **at_224 if model == "resnet50" else {})
            for model in arguments.models
        }
        servers = [
            stack.enter_context(serving(repository, folder / kind, _SETTINGS | extra))
            for kind, extra in (("off", _OFF), ("on", {}))
        ]
        off, default = (stack.enter_context(httpx.Client(base_url=server.url, timeout=120)) for server in servers)
        for model in arguments.models:
            items = inputs.texts() if model == "encoder" else inputs.photos()
            for batch in (1, 32) if model == "encoder" else (1, 8):
                rounds = arguments.rounds * (10 if model == "encoder" else 1)
                print(row(artifacts[model], items, batch, rounds, off, default), flush=True)


if __name__ == "__main__":
    main()
