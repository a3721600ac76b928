import json
import queue
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from fastapi import Response

import service.protocol
from service.app import create_app
from service.protocol import BoundedProtocol
from service.settings import Settings
from tests.conftest import SmallRepository, running_app

_LARGE = 50_000_000
_HEAD = b"POST /v1/models/text/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def hasty(small_repository: SmallRepository) -> Iterator[httpx.URL]:
    """A server that does not wait long."""
    settings = Settings(model_repository=small_repository.folder, header_timeout_s=0.2, body_timeout_s=0.2)
    with running_app(create_app(settings)) as client:
        yield client.base_url


@pytest.fixture(scope="module")
def narrow(small_repository: SmallRepository) -> Iterator[httpx.URL]:
    """A server that reads little, and has a route with a large answer."""
    app = create_app(Settings(model_repository=small_repository.folder, max_header_bytes=2000, max_body_bytes=1000))
    app.add_api_route("/large", lambda: Response(bytes(_LARGE)))
    with running_app(app) as client:
        yield client.base_url


@contextmanager
def connected(url: httpx.URL) -> Iterator[socket.socket]:
    """A bare connection."""
    with socket.create_connection((url.host, url.port), timeout=60) as connection:
        yield connection


def received(connection: socket.socket) -> bytes:
    """All that comes until the end of the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_connection_that_sends_nothing_is_closed(hasty: httpx.URL) -> None:
    """Who connects and says nothing gets no answer, and does not hold the connection."""
    with connected(hasty) as connection:
        assert received(connection) == b""


@pytest.mark.parametrize("start", [b"G", b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"GET /livez HTTP/1.1\r\nX-Long: aaaa"])
def test_a_head_that_does_not_end_is_answered_408(hasty: httpx.URL, start: bytes) -> None:
    """A head that is not complete in time is answered 408, and the connection closed."""
    with connected(hasty) as connection:
        connection.sendall(start)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer
    assert b"NORMSCOPE_HEADER_TIMEOUT_S" in answer


def test_a_second_request_has_the_same_time_for_its_head(hasty: httpx.URL) -> None:
    """The limit holds for every request of a connection, not only for the first; a complete one before it is answered."""
    with connected(hasty) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\n")
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in answer


def test_empty_lines_do_not_hold_a_connection(hasty: httpx.URL) -> None:
    """Line breaks before a head, which HTTP allows, do not stop the clock."""
    with connected(hasty) as connection:
        connection.sendall(b"\r\n")
        assert received(connection) == b""


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""])
def test_a_large_head_is_answered_431(narrow: httpx.URL, end: bytes) -> None:
    """A head over `max_header_bytes` is answered 431, whether it ends or goes on for ever; the client gets to read it."""
    with connected(narrow) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 200_000 + end)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 431")
    assert b"NORMSCOPE_MAX_HEADER_BYTES" in answer


def test_the_limit_of_the_head_does_not_count_the_body(narrow: httpx.URL) -> None:
    """A small head with a body larger than `max_header_bytes` in the same packet is judged by its head alone."""
    with connected(narrow) as connection:
        connection.sendall(_HEAD + b"Content-Length: 3000\r\n\r\n" + b" " * 3000)
        assert received(connection).startswith(b"HTTP/1.1 413")


def test_what_is_not_http_is_answered_400(narrow: httpx.URL) -> None:
    """Bytes that are no HTTP get 400 and the end of the connection."""
    with connected(narrow) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 400")


_BROKEN_HEADS = {
    # what is sent: status
    b" HTTP/1.1\r\nHost: x\r\nX-Request-ID: mine\r\nX-Other: a\r\nbroken\r\n\r\n": 400,
    b" HTTP/1.1\r\nHost: x\r\nX-Request-ID: mine\r\nX-Long: " + b"a" * 3000 + b"\r\n\r\n": 431,
    b" HTTP/1.1\r\nHost: x\r\nX-Request-ID: mine\r\nX-Long: " + b"a" * 3000: 431,
}


@pytest.mark.parametrize("sent", _BROKEN_HEADS)
@pytest.mark.parametrize("path", [b"/v1/models/text/predict?top_k=1", b"/v2/models/text/infer", b"/v2"])
def test_a_broken_head_is_answered_in_the_shape_of_its_api(narrow: httpx.URL, path: bytes, sent: bytes) -> None:
    """What of the head could be read decides the shape of the error and its id."""
    with connected(narrow) as connection:
        connection.sendall(b"POST " + path + sent)
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % _BROKEN_HEADS[sent])
    assert b"x-request-id: mine" in head
    assert head.count(b"connection: close") == 1
    error = json.loads(body)["error"]
    assert isinstance(error, str) if path.startswith(b"/v2") else error["remedy"]


def test_a_late_head_is_answered_in_the_shape_of_its_api(hasty: httpx.URL) -> None:
    """408 under /v2 is one text, with an id that is made where none was sent."""
    with connected(hasty) as connection:
        connection.sendall(b"POST /v2/models/text/infer HTTP/1.1\r\nHost: x\r\n")
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert re.search(rb"x-request-id: [0-9a-f]{32}\b", head)
    assert isinstance(json.loads(body)["error"], str)


def test_broken_heads_are_counted(narrow: httpx.URL) -> None:
    """In the metrics, without method and route."""
    with connected(narrow) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        received(connection)
    metrics = httpx.get(narrow.join("/metrics")).text
    assert 'normscope_requests_total{method="(other)",model="",route="(none)",status="400"}' in metrics


def test_who_sends_nonsense_after_a_request_gets_its_answer(narrow: httpx.URL) -> None:
    """A request that is in hand is answered before the connection ends because of what follows it."""
    body = b'{"inputs": "hello"}'
    with connected(narrow) as connection:
        connection.sendall(_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"nonsense\r\n\r\n")
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("path", ["/v1/models/text/predict", "/v2/models/text/infer"])
def test_broken_chunks_are_answered_400(narrow: httpx.URL, path: str) -> None:
    """A body whose chunks are broken is answered by its route, with its id, and the connection closed."""
    with connected(narrow) as connection:
        head = _HEAD.replace(b"/v1/models/text/predict", path.encode())
        connection.sendall(head + b"X-Request-ID: mine\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense\r\n")
        answer, _, body = received(connection).partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"connection: close" in answer
    assert b"x-request-id: mine" in answer
    assert "not HTTP" in str(json.loads(body)["error"])


@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_wish_for_another_protocol_is_ignored(narrow: httpx.URL, pieces: int, chunked: bool) -> None:
    """`Upgrade: h2c`, which some clients send with their first request, costs neither its body nor the next request."""
    body = b'{"inputs": "hello"}'
    length = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % len(body)
    head = _HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n" + length
    rest = (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body) + b"GET /livez HTTP/1.0\r\n\r\n"
    middle = len(rest) // 3
    with connected(narrow) as connection:
        for piece in {1: [head + rest], 2: [head, rest], 3: [head + rest[:middle], rest[middle:]]}[pieces]:
            connection.sendall(piece)
        answers = received(connection)
    assert answers.startswith(b"HTTP/1.1 200")
    assert answers.count(b"HTTP/1.1 200") == 2
    assert b'"predictions"' in answers


@pytest.mark.parametrize("sent", [b"", b'{"inputs": '])
def test_a_body_that_does_not_end_is_answered_408(hasty: httpx.URL, sent: bytes) -> None:
    """A body that is not complete in time is answered 408 in the usual shape, with a request id, and the connection closed."""
    with connected(hasty) as connection:
        connection.sendall(_HEAD + b"Content-Length: 20\r\n\r\n" + sent)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer
    assert b"x-request-id: " in answer
    assert b'"code":"slow_request"' in answer


def test_a_body_that_comes_in_pieces_is_read(narrow: httpx.URL) -> None:
    """A body of several chunks in time is as good as one of one."""
    with connected(narrow) as connection:
        connection.sendall(_HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        for piece in (b'{"inputs":', b' "hello"', b"}"):
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("chunked", [False, True])
def test_who_sends_far_too_much_reads_the_413(narrow: httpx.URL, chunked: bool) -> None:
    """A client that sends thousands of times the limit before it reads gets the answer and not a reset connection."""
    body = bytes(20_000_000)
    with connected(narrow) as connection:
        if chunked:
            connection.sendall(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
        else:
            connection.sendall(_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer


def test_who_asks_before_sending_too_much_is_refused_at_once(narrow: httpx.URL) -> None:
    """With `Expect: 100-continue` a body that would be too large is refused before any of it is sent."""
    with connected(narrow) as connection:
        connection.sendall(_HEAD + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 413")


def test_who_does_not_read_a_large_answer_loses_it(narrow: httpx.URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose client reads nothing is given up, so that the answer does not stay in memory; who reads gets all."""
    assert len(httpx.get(narrow.join("/large")).content) == _LARGE
    ended: queue.Queue[tuple[str, int] | None] = queue.Queue()
    connection_lost = BoundedProtocol.connection_lost

    def watched(self: BoundedProtocol, exc: Exception | None) -> None:
        ended.put(self.client)
        connection_lost(self, exc)

    monkeypatch.setattr(BoundedProtocol, "connection_lost", watched)
    monkeypatch.setattr(service.protocol, "_STALLED_S", 0.2)
    with connected(narrow) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        while ended.get(timeout=60) != connection.getsockname():
            pass
        assert len(received(connection)) < _LARGE
