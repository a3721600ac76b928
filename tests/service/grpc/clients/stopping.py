"""A server that is told to stop while this client is at work; its batches wait for more inputs, so that a call is in hand."""

import os
import queue
import signal
from collections.abc import Callable

import grpc
import httpx
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.service.grpc.clients.target import ADDRESS, PROCESS, URL, texts


def test_stopping() -> None:
    """Told to stop, the server is NOT_SERVING at once, but serves during the delay; then a call in hand is answered or, if it takes
    longer than the grace, told so; a stream that waits is ended, later calls are refused, all as UNAVAILABLE."""
    answered = os.environ["TARGET_ANSWERS"] == "1"
    ends: queue.Queue[InferenceServerException] = queue.Queue()
    with grpc.insecure_channel(ADDRESS) as channel, InferenceServerClient(ADDRESS) as triton:
        watching = HealthStub(channel).Watch(HealthCheckRequest())
        assert next(watching).status == HealthCheckResponse.SERVING
        triton.start_stream(callback=lambda _, error: ends.put(error))
        triton.async_stream_infer("nope", [texts("hello")])
        assert "nope" in str(ends.get(timeout=60))
        os.kill(PROCESS, signal.SIGTERM)
        assert next(watching).status == HealthCheckResponse.NOT_SERVING
        assert not triton.is_server_ready()
        in_hand = triton.async_infer("text", [texts("hello")])
        while 'normscope_queue_depth{model="text",version="1"} 1.0' not in httpx.get(f"{URL}/metrics").text:
            pass
        end = ends.get(timeout=60)
        assert (end.status(), "about to stop" in str(end)) == ("StatusCode.UNAVAILABLE", True)
        assert _end_of(triton.get_server_metadata) == "StatusCode.UNAVAILABLE"
        assert _end_of(lambda: in_hand.get_result(timeout=60)) == (None if answered else "StatusCode.UNAVAILABLE")


def _end_of(call: Callable[[], object]) -> str | None:
    """The status of an error of the call, None if it is answered."""
    try:
        call()
    except InferenceServerException as error:
        return str(error.status())
    return None
