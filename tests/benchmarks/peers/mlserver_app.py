"""The encoder or ResNet-50 behind MLServer, run in MLServer's own environment: `mlserver start` of a folder that names `Served`.

Source: https://docs.seldon.ai/mlserver/user-guide/adaptive-batching, .../parallel-inference and .../custom
"""

import asyncio

from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from tests.benchmarks.peers.classifier import Classifier


class Served(MLModel):  # type: ignore[misc]  # mlserver is not installed where types are checked
    """Texts are a BYTES tensor of strings, photos one of base64: MLServer's REST API has no raw tensors."""

    async def load(self) -> bool:
        self._classifier = Classifier.of_environment()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        tensor = payload.inputs[0]
        items = (Base64Codec if self.name == "resnet50" else StringCodec).decode_input(tensor)
        # off the event loop, so that the next batch is gathered meanwhile
        labels = await asyncio.get_running_loop().run_in_executor(None, self._classifier, items)
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("label", labels)])
