"""The server as the asyncio form of Triton's gRPC client sees it: every call that it has."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.service.grpc.clients.target import ADDRESS, CALLS, NOT_OFFERED, public_calls, texts


def _with_client(use: Callable[[Any], Awaitable[None]]) -> None:
    async def run() -> None:
        async with InferenceServerClient(ADDRESS) as opened:
            await use(opened)

    asyncio.run(run())


def test_no_call_is_left_out() -> None:
    """Every public call of the client is used below."""
    assert public_calls(InferenceServerClient) <= {call for call, _, _ in CALLS} | NOT_OFFERED.keys() | {"infer", "stream_infer"}


def test_calls() -> None:
    """Each call gives what it promises; those not offered say so."""

    async def use(client: Any) -> None:
        for call, arguments, holds in CALLS:
            assert holds(await getattr(client, call)(*arguments)), call
        for call, arguments in NOT_OFFERED.items():
            with pytest.raises(InferenceServerException, match="not offered"):
                await getattr(client, call)(*arguments)

    _with_client(use)


def test_infer_and_stream() -> None:
    """One request, several at once, and a stream whose wrong request does not end it."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for i, model in enumerate(("text", "nope", "text")):
            yield {"model_name": model, "inputs": [texts("hello")], "request_id": str(i)}

    async def use(client: Any) -> None:
        results = await asyncio.gather(*(client.infer("text", [texts("hello", "what")]) for _ in range(8)))
        assert all(result.as_numpy("logits").shape == (2, 3) for result in results)
        answers = [answer async for answer in client.stream_infer(requests())]
        assert [result and result.get_response().id for result, _ in answers] == ["0", None, "2"]
        assert "nope" in str(answers[1][1])

    _with_client(use)
