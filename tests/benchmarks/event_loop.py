"""How long the event loop stands still: `python -m tests.benchmarks.event_loop` serves photos and texts and prints the gaps.

A heartbeat on the server's own loop asks to be called every millisecond; a gap is how much later it comes. It is late when a
callback blocks the loop, but also when the interpreter or the cores are taken: the row `cores busy` shows how late an idle loop
is while other processes want every core. The load comes from wrk; the statistics of the last rows are made for every photo. `!`
marks requests that are refused, as the empty arrays always are.
"""

import argparse
import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from service.app import create_app
from service.engine.threads import available_cpus
from service.server import Server, tune_interpreter
from service.settings import Settings
from tests.benchmarks.peers import inputs
from tests.benchmarks.peers.wrk import Generator, HttpRequest, check_installed, finish
from tests.benchmarks.stillness import undisturbed

_BEAT_S = 0.001
_PHOTO = "/v1/models/resnet50/predict"
_TEXT = "/v1/models/encoder/predict"
_TENSOR = "/v2/models/resnet50/infer"


class BeatingServer(Server):
    """The server as shipped, with a heartbeat on its loop; `gaps` holds (when, milliseconds late) of every beat."""

    gaps: list[tuple[float, float]]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.gaps = []
        self._heart = asyncio.create_task(self._beat())  # kept: the loop alone would let it be collected
        await super().startup(sockets)

    async def _beat(self) -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(_BEAT_S)
            now = time.perf_counter()
            self.gaps.append((now, (now - start - _BEAT_S) * 1000))


@contextmanager
def beating() -> Iterator[tuple[BeatingServer, str]]:
    """A ready server of the shipped models in a thread of this process, and its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = BeatingServer(create_app(Settings()))
    tune_interpreter()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=60) as client:
            while not client.get("/readyz").is_success:
                time.sleep(0.1)
        yield server, url
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def busy_cores() -> Iterator[None]:
    """Another process on every core that never rests."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(available_cpus())]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def large_photo() -> bytes:
    """A JPEG of 12 megapixels, as phones take them."""
    rng = np.random.default_rng(0)
    clouds = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((4000, 3000), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    clouds.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def loads() -> dict[str, list[tuple[int, Sequence[HttpRequest]]]]:
    """What is sent in each row: (connections, requests), several at once."""
    photos = inputs.photos()
    long_texts = [" ".join(inputs.texts()[i : i + 40]) for i in range(0, 400, 40)]
    small = [HttpRequest(_PHOTO, "image/jpeg", photo) for photo in photos]
    large = [HttpRequest(_PHOTO, "image/jpeg", large_photo())]
    short, texts = ([HttpRequest.of_json(_TEXT, {"inputs": text}) for text in each] for each in (inputs.texts(), long_texts))
    many = [HttpRequest.of_json(_TEXT, {"inputs": long_texts})]
    arrays = [HttpRequest(_TEXT, "application/json", b'{"inputs":[' + b"[]," * 6_000_000 + b"1]}")]
    huge = [HttpRequest.of_json(_TEXT, {"inputs": "words " * 1_000_000})]
    return {
        "photos": [(8, small)],
        "photos of 12 megapixels": [(8, large)],
        "short texts, one after the other": [(1, short)],
        "short texts": [(64, short)],
        "long texts (some 2 kB)": [(64, texts)],
        "ten long texts in a request": [(16, many)],
        "texts of 6 MB": [(2, huge)],
        "18 MB of empty arrays": [(2, arrays)],
        "/v2, a photo as numbers in JSON": [(2, [_tensor(1, as_json=True)])],
        "/v2, 32 photos as binary data": [(2, [_tensor(32)])],
        "/v2, all statistics by channel, in JSON": [(2, [_tensor(1, layer_statistics="channels")])],
        "/v2, the same as binary data": [(2, [_tensor(1, layer_statistics="channels", binary_data_output=True)])],
        "photos and long texts": [(8, small), (64, texts)],
        "photos, statistics=summary": [(8, _with_statistics(small, "summary"))],
        "photos, statistics=channels": [(8, _with_statistics(small, "channels"))],
    }


def _tensor(rows: int, *, as_json: bool = False, **parameters: Any) -> HttpRequest:
    """Pixels of so many photos of 224 x 224, float32, with these parameters of the request."""
    pixels = np.random.default_rng(0).standard_normal((rows, 3, 224, 224)).astype(np.float32)
    tensor: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": pixels.shape}
    if as_json:
        return HttpRequest.of_json(_TENSOR, {"inputs": [tensor | {"data": pixels.ravel().tolist()}], "parameters": parameters})
    tensor["parameters"] = {"binary_data_size": pixels.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    return HttpRequest(_TENSOR, "application/octet-stream", head + pixels.tobytes(), length)


def _with_statistics(requests: Sequence[HttpRequest], level: str) -> list[HttpRequest]:
    return [HttpRequest(f"{one.path}?statistics={level}", one.content_type, one.body) for one in requests]


def _row(server: BeatingServer, name: str, send: Callable[[], str]) -> str:
    """The gaps while something is sent, which tells its rate."""
    start = time.perf_counter()
    rate = send()
    late = [ms for when, ms in server.gaps if when >= start]
    p50, p99 = np.percentile(late, [50, 99])
    return f"| {name} | {rate} | {len(late)} | {p50:.2f} | {p99:.2f} | {max(late):.1f} |"


def _rest(seconds: int) -> str:
    time.sleep(seconds)
    return ""


def _send(generators: Sequence[tuple[int, Generator]], url: str, seconds: int) -> str:
    """All at once; `!` marks refused or broken requests."""
    with ExitStack() as stack:
        runs = [stack.enter_context(generator.start(url, connections, seconds)) for connections, generator in generators]
        done = [finish(run) for run in runs]
    return " + ".join(f"{load.per_second:.0f}{' !' if load.refused or load.broken else ''}" for load in done)


def main() -> None:
    """Prints one row for each kind of load."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.event_loop", description=__doc__)
    parser.add_argument("--seconds", type=int, default=10, help="of each row")
    seconds = parser.parse_args().seconds
    check_installed()
    os.environ.pop("NORMSCOPE_MODEL_REPOSITORY", None)  # the shipped models are measured
    with beating() as (server, url), tempfile.TemporaryDirectory() as name:
        print("| load | requests/s | beats | late p50 ms | p99 ms | most ms |\n| --- | --- | --- | --- | --- | --- |")
        print(undisturbed(partial(_row, server, "none", partial(_rest, seconds))))
        with busy_cores():
            print(undisturbed(partial(_row, server, "none, cores busy", partial(_rest, seconds))))
        for row, (title, parts) in enumerate(loads().items()):
            generators = []
            for i, (connections, requests) in enumerate(parts):
                folder = Path(name) / f"{row}-{i}"
                folder.mkdir()
                generators.append((connections, Generator(folder, requests)))
            print(undisturbed(partial(_row, server, title, partial(_send, generators, url, seconds))), flush=True)


if __name__ == "__main__":
    main()
