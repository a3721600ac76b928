"""The encoder or ResNet-50 behind BentoML, run in BentoML's own environment: `bentoml serve ...:Served`.

Source: https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html and .../build-with-bentoml/parallelize-requests.html
"""

import os

import bentoml

from tests.benchmarks.peers.arrangement import MAX_BATCH_SIZE, Arrangement
from tests.benchmarks.peers.classifier import Classifier, from_base64

_MODEL = os.environ["BENCH_MODEL"]


@bentoml.service(
    workers=Arrangement.read().workers,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},  # none of the systems writes a line for each request
)
class Served:
    """A batchable API takes lists only; a client sends a list of one.

    Photos are base64 in JSON: a list of files would be multipart, parsed in Python, and each a temporary file.
    """

    def __init__(self) -> None:
        self._classifier = Classifier.of_environment()

    # the wait adapts itself; max_latency_ms, its bound, stays at the default of 60 s: what takes longer is answered 503
    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE[_MODEL])  # type: ignore[untyped-decorator]  # no types
    def predict(self, inputs: list[str]) -> list[str]:
        return self._classifier(from_base64(inputs) if _MODEL == "resnet50" else inputs)
