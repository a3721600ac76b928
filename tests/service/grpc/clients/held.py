"""Calls that wait while runs are held: cancelled ones, late ones, too many, and those in hand when the server stops."""

import queue
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from tritonclient.grpc.service_pb2 import ModelInferRequest, ServerLiveRequest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.service.test_server import process, read_until

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_MAX_QUEUE = 3


class Server:
    """A process whose runs are held, and a channel to it."""

    def __init__(self, started: subprocess.Popen[str], url: str, channel: grpc.Channel) -> None:
        self.process, self.url = started, url
        self.channel: Any = channel  # typed for generated messages alone, here it sends bytes
        self.stub: Any = GRPCInferenceServiceStub(channel)

    def infer(self) -> Any:
        """The future of a small inference."""
        request = ModelInferRequest(model_name="text")
        request.inputs.add(name="text", datatype="BYTES", shape=[1], contents={"bytes_contents": [b"hello"]})
        return self.stub.ModelInfer.future(request)

    def without_message(self) -> Any:
        """A ModelInfer that has begun, whose message does not come; its messages are put into the queue that it is given."""
        messages: queue.Queue[bytes | None] = queue.Queue()
        return self.channel.stream_stream(_INFER)(iter(messages.get, None))

    def wait_for_run(self, size: int) -> None:
        """Until a run of so many inputs begins."""
        read_until(self.process, f"^run of {size}$")

    def release(self) -> None:
        """Lets one run go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def wait_for_metric(self, labels: str, value: int) -> None:
        """Until a metric has this value; labels as the text shows them."""
        while not re.search(rf"{re.escape(labels)}[^\n]* {value}\.0\n", httpx.get(f"{self.url}/metrics").text):
            pass


@contextmanager
def _server(*options: str) -> Iterator[Server]:
    ports = ("--port", "0", "--grpc-port", "0")
    model = ("--threads", "1", "--statistics-sample", "0", "--max-queue", str(_MAX_QUEUE))
    with process(*ports, *model, *options, module="tests.held") as started:
        url = read_until(started, r"running on (http://[\d.]+:\d+)")[1]
        address = read_until(started, r"gRPC running on ([\d.]+:\d+)")[1]
        while httpx.get(f"{url}/readyz").status_code != 200:
            pass
        with grpc.insecure_channel(address) as channel:
            yield Server(started, url, channel)


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """One server for all tests that do not stop it."""
    with _server("--body-timeout-s", "0.5") as started:
        yield started


def _error(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call.result() if isinstance(call, grpc.Future) else next(call)
    error: Any = raised.value
    return error.code(), error.details()


def test_a_cancelled_call_is_dropped(shared: Server) -> None:
    """While a run is held, a call that waits is cancelled: it counts as CANCELLED, its place is given back before the run ends, its
    work never runs, and its neighbours are answered."""
    running = shared.infer()
    shared.wait_for_run(1)
    leaving, staying = shared.infer(), shared.infer()
    shared.wait_for_metric('normscope_queue_depth{model="text"', 2)
    code, text = _error(shared.infer())
    assert (code, "queue of text is full" in text) == (grpc.StatusCode.UNAVAILABLE, True)
    leaving.cancel()
    shared.wait_for_metric('model="text",route="ModelInfer",status="CANCELLED"}', 1)
    another = shared.infer()
    shared.wait_for_metric('normscope_queue_depth{model="text"', 3)  # one of them is abandoned, and dropped with the next turn
    shared.release()
    shared.wait_for_run(2)
    shared.release()
    for call in (running, staying, another):
        assert call.result().model_name == "text"


def test_a_call_whose_message_does_not_come_ends(shared: Server) -> None:
    """DEADLINE_EXCEEDED once `body_timeout_s` is over, in words that name the setting."""
    code, text = _error(shared.without_message())
    assert (code, "NORMSCOPE_BODY_TIMEOUT_S" in text) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)


def test_too_many_calls_are_refused_before_their_messages_are_read(shared: Server) -> None:
    """Health is answered all the same, and once they have ended, the next call is served."""
    waiting = [shared.without_message() for _ in range(3 * _MAX_QUEUE)]
    code, text = _error(shared.infer())
    assert (code, "calls are in hand" in text) == (grpc.StatusCode.UNAVAILABLE, True)
    assert shared.stub.ServerLive(ServerLiveRequest()).live
    assert HealthStub(shared.channel).Check(HealthCheckRequest()).status == 1
    for call in waiting:
        assert _error(call)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    served = shared.infer()
    shared.wait_for_run(1)
    shared.release()
    assert served.result().model_name == "text"


def test_idle_streams_keep_only_further_streams_out(shared: Server) -> None:
    """A call is served meanwhile; once they have ended, so is a stream."""
    held = [shared.channel.stream_stream(_STREAM) for _ in range(3 * _MAX_QUEUE)]
    messages: list[queue.Queue[bytes | None]] = [queue.Queue() for _ in held]
    request = ModelInferRequest(model_name="nope").SerializeToString()
    streams = []
    for open_stream, its_messages in zip(held, messages, strict=True):
        its_messages.put(request)
        streams.append(open_stream(iter(its_messages.get, None)))
        assert b"nope" in next(streams[-1])
    code, text = _error(shared.channel.stream_stream(_STREAM)(iter([request])))
    assert (code, "calls are in hand" in text) == (grpc.StatusCode.UNAVAILABLE, True)
    served = shared.infer()
    shared.wait_for_run(1)
    shared.release()
    assert served.result().model_name == "text"
    for its_messages, stream in zip(messages, streams, strict=True):
        its_messages.put(None)
        assert list(stream) == []
    (answer,) = shared.channel.stream_stream(_STREAM)(iter([request]))
    assert b"nope" in answer


def test_a_call_in_hand_is_answered_when_the_server_stops() -> None:
    """After SIGTERM new calls are refused, the accepted one is answered within the grace, and the process ends with 0."""
    with _server() as server:
        accepted = server.infer()
        server.wait_for_run(1)
        server.process.terminate()
        read_until(server.process, "1 accepted")
        assert _error(server.infer())[0] is grpc.StatusCode.UNAVAILABLE
        server.release()
        assert accepted.result().model_name == "text"
        assert server.process.wait(60) == 0


def test_a_call_that_takes_too_long_is_told_so() -> None:
    """A call that is not answered within `shutdown_grace_s` gets UNAVAILABLE; the process ends with 0 once its run has."""
    with _server("--shutdown-grace-s", "1") as server:
        accepted = server.infer()
        server.wait_for_run(1)
        server.process.terminate()
        assert _error(accepted)[0] is grpc.StatusCode.UNAVAILABLE
        server.release()
        assert server.process.wait(60) == 0


def test_calls_that_wait_do_not_hold_up_the_end() -> None:
    """A stream without messages, one that watches the health, and a call whose message does not come: all are told UNAVAILABLE or
    cut, and the process ends with 0."""
    with _server("--shutdown-grace-s", "1") as server:
        streaming = server.channel.stream_stream(_STREAM)(iter(queue.Queue().get, None))
        watching = HealthStub(server.channel).Watch(HealthCheckRequest())
        unfinished = server.without_message()
        assert server.stub.ServerLive(ServerLiveRequest()).live  # the calls above have begun: they share a connection
        server.process.terminate()
        assert server.process.wait(60) == 0
        for call in (streaming, watching, unfinished):
            with pytest.raises(grpc.RpcError):
                for _ in call:
                    pass
        assert [streaming.code(), unfinished.code()] == [grpc.StatusCode.UNAVAILABLE] * 2
