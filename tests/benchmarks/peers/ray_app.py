"""The encoder or ResNet-50 behind Ray Serve, run in Ray's own environment: `python ray_app.py`.

Source: https://docs.ray.io/en/latest/serve/advanced-guides/performance.html, .../dyn-req-batch.html and
https://docs.ray.io/en/master/kuberay/user-guides/serve-high-throughput.html; RAY_SERVE_THROUGHPUT_OPTIMIZED and
RAY_SERVE_ENABLE_HA_PROXY are set by the benchmark before the interpreter starts.
"""

import asyncio
import os

import ray
from ray import serve
from starlette.requests import Request

from tests.benchmarks.peers.arrangement import MAX_BATCH_SIZE, Arrangement
from tests.benchmarks.peers.classifier import Classifier, Item

_ARRANGEMENT = Arrangement.read()
_MODEL = os.environ["BENCH_MODEL"]


@serve.deployment(
    num_replicas=_ARRANGEMENT.workers,
    max_ongoing_requests=1000,  # the default of 5 would keep batches smaller than that
    ray_actor_options={"num_cpus": _ARRANGEMENT.threads},
)
class Served:
    """Texts come as JSON, photos as the body itself."""

    def __init__(self) -> None:
        self._classifier = Classifier.of_environment()

    @serve.batch(  # type: ignore[untyped-decorator]  # as above
        max_batch_size=MAX_BATCH_SIZE[_MODEL], batch_wait_timeout_s=_ARRANGEMENT.wait_ms / 1000
    )
    async def classify(self, items: list[Item]) -> list[str]:
        # the throughput-optimized mode runs this on the loop of the replica, which must not block
        return await asyncio.get_running_loop().run_in_executor(None, self._classifier, items)

    async def __call__(self, request: Request) -> dict[str, str]:
        item = await request.body() if _MODEL == "resnet50" else (await request.json())["inputs"]
        return {"label": await self.classify(item)}


def main() -> None:
    """Serves until SIGTERM."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])})
    serve.run(Served.bind(), blocking=True)  # type: ignore[attr-defined]  # added by the decorator; ray is not installed here


if __name__ == "__main__":
    main()
