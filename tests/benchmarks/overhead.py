"""What the statistics cost: `python -m tests.benchmarks.overhead` prints ratios to the plain ONNX Runtime run of the same round.

All variants of a row run one after the other in every round, so that a noisy machine disturbs them alike, each twice, of which the
second run counts; the table shows the median of the ratios. The cost does not depend on the content: photos are noise, tokens are
random, 13 in a sentence.
"""

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from models.artifact import Artifact, load_artifact, write_manifest
from models.preprocessing import ImagePreprocessing
from models.statistics.layers import BatchReducer, BatchStatistics, RunOutputs, SideLayout
from service.engine.graph import prepare
from service.engine.session import Feed, Session
from service.engine.threads import available_cpus
from tests.networks import network_of

_SHIPPED = Path(__file__).parent.parent.parent / "models" / "artifacts"
_THREADS = available_cpus()
_SENTENCE = "please tell me how much money is left in my savings account"

Variants = dict[str, Callable[[], object]]


def at_224(artifact: Artifact, folder: Path) -> Artifact:
    """The same image model, served at 224 px."""
    target = folder / artifact.manifest.name / artifact.manifest.version
    shutil.copytree(artifact.folder, target)
    manifest = artifact.manifest.model_copy(update={"preprocessing": ImagePreprocessing(resize=224, crop=224)})
    return write_manifest(target, manifest, list(manifest.files))


def with_hooks(network: nn.Module, inputs: list[Tensor]) -> Callable[[], object]:
    """A torch run whose hooks take the same statistics of both sides of every norm."""

    def observe(x: Tensor) -> list[Tensor]:
        return [x.mean(), x.var(correction=0), x.amin(), x.amax(), x.norm(), (x == 0).float().mean()]

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        observe(arguments[0])
        observe(output)

    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.register_forward_hook(hook)

    def run() -> object:
        with torch.inference_mode():
            return network(*inputs)

    return run


@contextmanager
def server(repository: Path) -> Iterator[httpx.Client]:
    """`python -m service` over a repository, statistics over traffic off, and a client of it."""
    environment = os.environ | {
        "NORMSCOPE_MODEL_REPOSITORY": str(repository),
        "NORMSCOPE_STATISTICS_SAMPLE": "0",
        "NORMSCOPE_MAX_BATCH_SIZE": "32",
    }
    process = subprocess.Popen([sys.executable, "-m", "service", "--port", "0"], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        ready, url = 0, ""
        for line in process.stderr:
            found = re.search(r"running on (http://[\d.]+:\d+)", line)
            url = found[1] if found else url
            ready += " is ready" in line
            if url and ready == len(list(repository.iterdir())):
                break
        with httpx.Client(base_url=url, timeout=120) as client:
            yield client
    finally:
        process.terminate()
        process.communicate()


def variants(artifact: Artifact, feed: Feed, client: httpx.Client, body: dict[str, object]) -> Variants:
    """What is compared, by the name of its column."""
    layout = SideLayout(tuple(artifact.manifest.layers))
    plain = Session(prepare(artifact), _THREADS)
    workers = ThreadPoolExecutor(_THREADS)
    graph = prepare(artifact, "cpu", layout.reductions, layout.pairs)
    observed, reducer = Session(graph, _THREADS), BatchReducer(layout, graph.observers)

    def with_probes(*, channels: bool) -> BatchStatistics:
        result = observed.run(feed, channels=channels)
        return reducer.reduce(RunOutputs(result.tensors, result.summary, result.channels), feed, workers)

    url = f"/v1/models/{artifact.manifest.name}/predict"
    inputs = [torch.from_numpy(array) for array in feed.values()]
    network = network_of(artifact)

    def torch_plain() -> object:
        with torch.inference_mode():
            return network(*inputs)

    return {
        "onnxruntime": lambda: plain.run(feed),
        "summary": lambda: with_probes(channels=False),
        "channels": lambda: with_probes(channels=True),
        "HTTP": lambda: client.post(url, **body).raise_for_status(),  # type: ignore[arg-type]  # httpx's many keywords
        "HTTP, statistics": lambda: client.post(f"{url}?statistics=summary", **body).raise_for_status(),  # type: ignore[arg-type]
        "torch": torch_plain,
        "torch, hooks": with_hooks(network_of(artifact), inputs),
    }


def measure(compared: Variants, rounds: int) -> tuple[float, dict[str, float]]:
    """(median seconds of the first variant, median ratio of each to the first of its round)."""
    for run in compared.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(rounds):
        for name, run in compared.items():
            run()  # untimed: what another variant left in the caches, and its spinning threads, are not this one's cost
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    first = np.array(next(iter(seconds.values())))
    return float(np.median(first)), {name: float(np.median(np.array(values) / first)) for name, values in seconds.items()}


def main() -> None:
    """Prints one row for each model and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(_THREADS)
    rng = np.random.default_rng(0)
    print(f"{_THREADS} threads, onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, median of {rounds} rounds")
    with tempfile.TemporaryDirectory() as name:
        repository = Path(name)
        resnet = at_224(load_artifact(_SHIPPED / "resnet50" / "1"), repository)
        shutil.copytree(_SHIPPED / "encoder", repository / "encoder")
        encoder = load_artifact(repository / "encoder" / "1")
        rows: list[tuple[str, float, dict[str, float]]] = []
        with server(repository) as client:
            for batch in (1, 8):
                pixels = rng.integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
                preprocessing = resnet.manifest.preprocessing
                assert isinstance(preprocessing, ImagePreprocessing)
                feed: Feed = {"image": preprocessing.normalize(pixels)}
                files = [("image", ("photo.jpg", _jpeg(image))) for image in pixels]
                rows.append((f"resnet50, {batch}", *measure(variants(resnet, feed, client, {"files": files}), rounds)))
            for batch in (1, 32):
                tokens = rng.integers(3, 1000, (batch, 13))
                feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
                body: dict[str, object] = {"json": {"inputs": [_SENTENCE] * batch}}
                rows.append((f"encoder, {batch}", *measure(variants(encoder, feed, client, body), rounds * 10)))
    columns = list(rows[0][2])
    print("| model, batch | ms | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * (len(columns) + 1))
    for title, base, ratios in rows:
        print(f"| {title} | {base * 1000:.1f} | " + " | ".join(f"{ratios[column]:.2f}" for column in columns) + " |")


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
