"""A full queue over real connections: the places of a model are taken by the test, so that every request comes too many."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from service.app import create_app
from service.engine.model import ServedModel
from service.settings import Settings
from tests.conftest import SmallRepository, running_app

_ROUTES = [("/v1/models/text/predict", 429), ("/v2/models/text/infer", 503), ("/v2/models/text/versions/1/infer", 503)]
_ROUTES += [("/v1/models/text/predict?version=1&top_k=2", 429)]
_BODY = {"inputs": "hello"}


@contextmanager
def full(served: ServedModel) -> Iterator[None]:
    """All places are taken meanwhile."""
    taken = 0
    while served.overload is None:
        served.acquire()
        taken += 1
    try:
        yield
    finally:
        for _ in range(taken):
            served.release()


@pytest.fixture(scope="module")
def busy(small_repository: SmallRepository) -> Iterator[tuple[httpx.Client, ServedModel]]:
    """A server with two places for each model, and its text model."""
    settings = Settings(model_repository=small_repository.folder, max_queue=2, api_keys=("key",), cors_origins=("http://page",))
    app = create_app(settings)
    with running_app(app) as client:
        client.headers["X-API-Key"] = "key"
        yield client, app.state.normscope.repository.get("text")


@pytest.mark.parametrize(("path", "status"), _ROUTES)
@pytest.mark.parametrize("headers", [{}, {"Origin": "http://page"}])
def test_a_full_queue_refuses(busy: tuple[httpx.Client, ServedModel], path: str, status: int, headers: dict[str, str]) -> None:
    """With status, shape, Retry-After and the id of the request; early and by the route itself (which a page of another origin
    reaches) the same; the connection goes on, and a place that is free again is given."""
    client, served = busy
    with full(served):
        refused = client.post(path, json=_BODY, headers={"X-Request-ID": "one", **headers})
        assert client.get("/livez").status_code == 200
    assert refused.status_code == status
    assert refused.headers["retry-after"] == "1"
    assert refused.headers.get_list("x-request-id") == ["one"]
    assert refused.headers["content-type"] == "application/json"
    error = refused.json()["error"]
    assert "queue of text is full" in (error if isinstance(error, str) else error["message"])
    if path.startswith("/v1"):
        assert error["code"] == "overloaded"
        assert error["limit"] == 2
        assert client.post("/v1/models/text/predict", json=_BODY).status_code == 200


def test_refusals_are_counted(busy: tuple[httpx.Client, ServedModel]) -> None:
    """By route, model and status, as every request."""
    client, served = busy
    with full(served):
        client.post("/v1/models/text/predict", json=_BODY)
    series = 'normscope_requests_total{method="POST",model="text",route="/v1/models/{model}/predict",status="429"}'
    assert series in client.get("/metrics").text


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/models/text/predict", {"X-API-Key": "wrong"}, 401),
        ("/v1/models/none/predict", {}, 404),
        ("/v1/models/text/predict?version=9", {}, 404),
        ("/v2/models/text/versions/9/infer?version=1", {}, 404),
        ("/v1/models/vision/predict", {}, 422),
    ],
)
def test_other_problems_come_first(busy: tuple[httpx.Client, ServedModel], path: str, headers: dict[str, str], status: int) -> None:
    """A stranger does not learn that the queue is full, and neither an unknown version nor another model has to do with it."""
    client, served = busy
    with full(served):
        assert client.post(path, json=_BODY, headers=headers).status_code == status


def test_many_requests_in_one_packet_are_refused_in_their_order(busy: tuple[httpx.Client, ServedModel]) -> None:
    """Behind one that is answered by the app: each gets its answer, and the connection goes on."""
    client, served = busy
    refused = b"POST /v1/models/text/predict HTTP/1.1\r\nHost: a\r\nX-API-Key: key\r\nX-Request-ID: %d\r\nContent-Length: 0\r\n\r\n"
    health = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    requests = health + b"".join(refused % i for i in range(600)) + health.replace(b"a\r\n", b"a\r\nConnection: close\r\n")
    with full(served), socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30) as connection:
        connection.sendall(requests)
        answers = b"".join(iter(lambda: connection.recv(100_000), b""))
    assert answers.count(b"HTTP/1.1 429 ") == 600
    assert answers.count(b"HTTP/1.1 200 ") == 2
    assert re.findall(rb"x-request-id: (\d{1,3})\r", answers) == [b"%d" % i for i in range(600)]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_body_of_a_refused_request_is_dropped(busy: tuple[httpx.Client, ServedModel], version: str) -> None:
    """A client that sends its whole body first, and one that closes after the answer, get the answer and no broken connection."""
    client, served = busy
    body = b"x" * 300_000
    with full(served), socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30) as connection:
        head = f"POST /v1/models/text/predict HTTP/{version}\r\nHost: a\r\nX-API-Key: key\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode())
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 429 ")
        if version == "1.1":
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert b"HTTP/1.1 200 OK" in b"".join(iter(lambda: connection.recv(1000), b""))
