"""The encoder or ResNet-50 behind LitServe, run in LitServe's own environment: `python litserve_app.py`.

Source: https://lightning.ai/docs/litserve/features/batching, .../speed-up-serving-by-200x and the docstrings of LitServer.
"""

import os
from typing import Annotated

import litserve
from fastapi import Body

from tests.benchmarks.peers.arrangement import MAX_BATCH_SIZE, Arrangement
from tests.benchmarks.peers.classifier import Classifier, Item


class _Served(litserve.LitAPI):  # type: ignore[misc]  # litserve ships no types
    """Decoding happens in `predict`, on the whole batch: LitServe would decode one request after the other."""

    def setup(self, device: str) -> None:
        self._classifier = Classifier.of_environment()

    def batch(self, inputs: list[Item]) -> list[Item]:
        return inputs

    def predict(self, inputs: list[Item]) -> list[str]:
        return self._classifier(inputs)

    def unbatch(self, output: list[str]) -> list[str]:
        return output

    def encode_response(self, output: str) -> dict[str, str]:
        return {"label": output}


class Texts(_Served):
    """JSON in."""

    def decode_request(self, request: dict[str, str]) -> str:
        return request["inputs"]


class Photos(_Served):
    """The file as the body: base64 in JSON, as in LitServe's examples, costs it a third more bytes and a decoder."""

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> bytes:
        return request


def main() -> None:
    """Serves until it is stopped."""
    arrangement = Arrangement.read()
    model = os.environ["BENCH_MODEL"]
    api = (Photos if model == "resnet50" else Texts)(
        max_batch_size=MAX_BATCH_SIZE[model],
        batch_timeout=arrangement.wait_ms / 1000,  # 0 polls the queue without a pause and takes a core
    )
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=arrangement.workers,
        fast_queue=True,  # ZeroMQ: "use when serving hundreds of requests per second"
    )
    # as many HTTP servers as workers is LitServe's default
    server.run(
        host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), log_level="warning", access_log=False, generate_client_file=False
    )


if __name__ == "__main__":
    main()
