"""Calls a server with KServe's REST client, in a process of its own: `python kserve_calls.py URL IMAGE`.

KServe's package brings messages of gRPC that clash with those of other clients, and pins old versions of what the service uses.
"""

import asyncio
import sys
from pathlib import Path

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, InferResponse, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def call_everything(url: str, photo: bytes) -> None:
    """Health, texts and tokens and images, JSON and binary both ways, layer statistics, errors."""
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, "text")
        assert not await client.is_model_ready(url, "nope")

        texts = InferInput("text", [2], "BYTES", ["hello", "what is my account balance"])
        plain = await client.infer(url, InferRequest("text", [texts], request_id="42"), model_name="text")
        assert isinstance(plain, InferResponse)
        assert (plain.id, plain.model_name) == ("42", "text")
        logits = plain.outputs[0].as_numpy()
        assert logits.shape == (2, 3)

        binary = InferInput("text", [2], "BYTES")
        binary.set_data_from_numpy(np.array([b"hello", b"what is my account balance"], np.object_), binary_data=True)
        outputs = [
            RequestedOutput("logits", {"binary_data": True}),
            RequestedOutput("statistics.after.mean", {"binary_data": True}),
        ]
        answer = await client.infer(url, InferRequest("text", [binary], request_outputs=outputs), model_name="text")
        np.testing.assert_allclose(answer.outputs[0].as_numpy(), logits, atol=1e-5)
        assert answer.outputs[1].as_numpy().shape == (2, 5)

        tokens = [InferInput(name, [1, 2], "INT64", [[5, 6]]) for name in ("input_ids", "attention_mask")]
        tokens[1].data = [[1, 1]]
        request = InferRequest("text", tokens, parameters={"layer_statistics": "summary"})
        answer = await client.infer(url, request, model_name="text")
        assert len(answer.outputs) > 40

        encoded = InferInput("encoded_image", [1], "BYTES")
        encoded.set_data_from_numpy(np.array([photo], np.object_), binary_data=True)
        answer = await client.infer(url, InferRequest("vision", [encoded]), model_name="vision")
        assert answer.outputs[0].as_numpy().shape == (1, 3)

        as_dictionary = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hello"]}]}
        answer = await client.infer(url, as_dictionary, model_name="text")
        np.testing.assert_allclose(answer.outputs[0].as_numpy()[0], logits[0], atol=1e-5)

        refusal = ""
        try:
            await client.infer(url, {"inputs": []}, model_name="text")
        except httpx.HTTPStatusError as error:
            refusal = str(error)
        assert "text, or input_ids and attention_mask" in refusal
        assert "400" in refusal


asyncio.run(call_everything(sys.argv[1], Path(sys.argv[2]).read_bytes()))
