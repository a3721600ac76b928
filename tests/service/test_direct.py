"""Requests that the connection answers directly, beside those that go through the app, on bare connections."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.conftest import SmallRepository, running_app
from tests.held import held_runs
from tests.service.api.test_predict import image
from tests.service.test_protocol import connected, received

_V1, _V2 = "/v1/models/text/predict", "/v2/models/text/infer"
_OIP = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hello"]}]}
_KEY = {"X-API-Key": "the-key"}
_CHANGING = {"date", "x-request-id", "content-length", "vary"}  # times have more digits or fewer; pages elsewhere vary
_TOLD: dict[tuple[str, str], tuple[dict[str, str], Any]] = {}  # what the first of the servers answered


@pytest.fixture(scope="module", params=["direct", "through"])
def closed(small_repository: SmallRepository, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """A server that asks for a key, and answers directly or, as pages elsewhere are served, through the app."""
    origins = [] if request.param == "direct" else ["https://example.org"]
    settings = {"model_repository": small_repository.folder, "api_keys": "the-key", "cors_origins": origins}
    with running_app(create_app(Settings.model_validate(settings))) as client:
        yield client


def _request(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _hello(*headers: str) -> bytes:
    return _request(_V1, b'{"inputs": "hello"}', *headers)


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        (_V1, {"inputs": "hello"}, 200),
        (f"{_V1}?statistics=channels", {"inputs": ["hello", "my friend"]}, 200),
        (_V2, _OIP, 200),
        (_V1, {"inputs": 1}, 422),
        (_V2, {"inputs": 1}, 400),
        (f"{_V1}?version=9", {"inputs": "hello"}, 404),
        (f"{_V1}?%76ersion=9", {"inputs": "hello"}, 404),
    ],
)
def test_an_answer_is_the_same_directly_and_through_the_app(closed: httpx.Client, path: str, content: object, status: int) -> None:
    """Status, headers and body, success or error, are the same whichever way a request takes."""
    answer = closed.post(path, json=content, headers=_KEY)
    assert answer.status_code == status
    assert {"date", "x-request-id"} <= answer.headers.keys()
    told = {name: value for name, value in answer.headers.items() if name not in _CHANGING}, answer.json()
    told[1].pop("timing", None)
    assert told == _TOLD.setdefault((path, json.dumps(content)), told)


@pytest.mark.parametrize("path", [_V1, _V2])
def test_a_key_is_asked_for(closed: httpx.Client, path: str) -> None:
    """Before anything is read; the answer says how to send one."""
    answer = closed.post(path, content=b"no JSON")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_requests_of_a_connection_are_answered_in_their_order(client: httpx.Client) -> None:
    """Also if all come at once, and some of them are answered directly, some by the app and some by the connection itself."""
    get = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    sent = [_hello("X-Request-ID: 0"), get, _hello("X-Request-ID: 2"), head, _hello("X-Request-ID: 4", "Connection: close")]
    with connected(client.base_url) as connection:
        connection.sendall(b"".join(sent))
        answer = received(connection)
    assert answer.count(b"HTTP/1.1 200") == len(sent)
    places = [answer.index(b"x-request-id: %d\r\n" % i) for i in (0, 2, 4)]
    assert places == sorted(places)
    assert answer.count(b"connection: close") == 1


@pytest.mark.parametrize("sent", [_hello("Connection: close"), _hello().replace(b"HTTP/1.1", b"HTTP/1.0")])
def test_the_last_answer_of_a_connection_says_so(client: httpx.Client, sent: bytes) -> None:
    """Who wants the connection to end after the answer, reads its end."""
    with connected(client.base_url) as connection:
        connection.sendall(sent)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"connection: close") == 1
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["model"] == "text"


def test_who_waits_for_leave_to_send_gets_it(client: httpx.Client) -> None:
    """`Expect: 100-continue` is answered before the body comes, which may come in chunks."""
    head, _, body = _hello("Expect: 100-continue", "Connection: close").partition(b"\r\n\r\n")
    head = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
    with connected(client.base_url) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for piece in (body[:5], body[5:], b""):
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert received(connection).startswith(b"HTTP/1.1 200")


def _answer(connection: socket.socket) -> bytes:
    """The head of the answer that comes next, and what came with it."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = connection.recv(65536)
        assert part, "the connection was closed"
        answer += part
    return answer


def test_a_refused_request_leaves_its_connection_open(small_repository: SmallRepository) -> None:
    """For as long as an idle one may live, although there is less time for a head: a proxy will use it again."""
    settings = Settings(model_repository=small_repository.folder, max_queue=1, header_timeout_s=0.2, idle_timeout_s=60)
    app = create_app(settings)
    with running_app(app) as client, connected(client.base_url) as connection:
        served = app.state.normscope.repository.get("text")
        served.acquire()
        connection.sendall(_hello())
        assert _answer(connection).startswith(b"HTTP/1.1 429")
        served.release()
        with connected(client.base_url) as silent:  # for the time of a head
            assert silent.recv(1) == b""
        connection.sendall(_hello())
        assert _answer(connection).startswith(b"HTTP/1.1 200")


def test_an_idle_connection_is_closed(small_repository: SmallRepository) -> None:
    """Some time after its last answer; one whose request is worked on lives on, and so does one that has begun the next."""
    settings = Settings(model_repository=small_repository.folder, statistics_sample=0, header_timeout_s=60, idle_timeout_s=0.2)
    with held_runs() as held, running_app(create_app(settings)) as client, connected(client.base_url) as idle:
        with connected(client.base_url) as working, connected(client.base_url) as beginning:
            for connection in (working, beginning):
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                _answer(connection)
            photo = image()
            head = "POST /v1/models/vision/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            working.sendall(f"{head}Content-Length: {len(photo)}\r\n\r\n".encode() + photo)
            beginning.sendall(b"GET /livez HTTP/1.1\r\n")
            held.began.acquire()
            for _ in range(2):  # twice the time that an idle connection has
                with connected(client.base_url) as other:
                    other.sendall(_request("/v1/models/none/predict", b""))
                    assert received(other).startswith(b"HTTP/1.1 404")
            beginning.sendall(b"Host: x\r\n\r\n")
            assert _answer(beginning).startswith(b"HTTP/1.1 200")
            held.release(100)
            assert _answer(working).startswith(b"HTTP/1.1 200")
            assert working.recv(1) == b""
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert received(idle).startswith(b"HTTP/1.1 200")


class _Panic(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize(
    ("broken", "fault", "status"),
    [
        ("service.api.predict.read_inputs", _Panic, 500),
        ("service.api.predict.read_inputs", RuntimeError, 500),
        ("service.api.answers.error_answer", RuntimeError, 500),
        ("service.metrics.Metrics.observe_request", RuntimeError, None),
    ],
)
def test_a_fault_of_ours_ends_the_request(
    small_repository: SmallRepository, monkeypatch: pytest.MonkeyPatch, broken: str, fault: type[BaseException], status: int | None
) -> None:
    """With 500 in the usual shape, or the end of the connection; the service goes on."""

    def fail(*_: Any, **__: Any) -> None:
        raise fault("inner")

    with running_app(create_app(Settings(model_repository=small_repository.folder))) as client:
        with monkeypatch.context() as patch, connected(client.base_url) as connection:
            patch.setattr(broken, fail)
            connection.sendall(_request(_V1, b"{}" if "error_answer" in broken else b'{"inputs": "hello"}', "Connection: close"))
            answer = received(connection)
        if status is None:
            assert answer == b""
        else:
            assert answer.startswith(b"HTTP/1.1 %d" % status)
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "internal"
            assert b"inner" not in answer
        assert client.post(_V1, json={"inputs": "hello"}).status_code == 200


def test_a_connection_whose_request_was_refused_before_its_body_is_closed_too(small_repository: SmallRepository) -> None:
    """Once the body has come, and then nothing."""
    settings = Settings(model_repository=small_repository.folder, header_timeout_s=60, idle_timeout_s=0.2)
    with running_app(create_app(settings)) as client, connected(client.base_url) as connection:
        head, _, body = _request("/v1/models/none/predict", b" " * 100).partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert _answer(connection).startswith(b"HTTP/1.1 404")
        with connected(client.base_url) as other:  # for the time that an idle connection has
            other.sendall(_request("/v1/models/none/predict", b""))
            received(other)
        connection.sendall(body)
        assert received(connection) == b""
