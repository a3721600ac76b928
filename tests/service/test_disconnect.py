"""Clients that go away over real connections: their work is dropped, their neighbours are answered, their places are free again."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from service.app import create_app
from service.engine.model import ServedModel
from service.settings import Settings
from tests.conftest import SmallRepository, running_app
from tests.held import HeldRuns, held_runs
from tests.service.api.oip.wire import request, text
from tests.service.api.test_predict import image

_MAX_QUEUE = 4
_V1 = ("/v1/models/text/predict", {"inputs": "hello"})
_V2 = ("/v2/models/text/infer", request(text("hello")))


class Service:
    """A server whose runs are held, one at a time, and what a test wants to know of it."""

    def __init__(self, client: httpx.Client, held: HeldRuns, find: Callable[[str], ServedModel]) -> None:
        self.client, self.held, self.find = client, held, find

    def send(self, path: str, content: object, *, missing: int = 0) -> socket.socket:
        """The connection of a request, without its last bytes."""
        body = json.dumps(content).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection = socket.create_connection((self.client.base_url.host, self.client.base_url.port or 0), timeout=60)
        connection.sendall(head.encode() + body[: len(body) - missing])
        return connection

    def gone(self, route: str) -> int:
        """How many requests of a route the metrics count as 499."""
        lines = [line for line in self.client.get("/metrics").text.splitlines() if f'route="{route}",status="499"' in line]
        return int(float(lines[0].rpartition(" ")[2])) if lines else 0

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Asks the server for something until the condition holds; the time limit is that of the client."""
        while not condition():
            self.client.get("/livez")

    def free_places(self, model: str) -> int:
        """How many more requests the model takes; all places must be free for a moment."""
        served, taken = self.find(model), 0
        while served.overload is None:
            served.acquire()
            taken += 1
        for _ in range(taken):
            served.release()
        return taken


@pytest.fixture
def service(small_repository: SmallRepository) -> Iterator[Service]:
    """With four places for each model and one thread, so that everything waits behind the run that is held."""
    settings = Settings(model_repository=small_repository.folder, max_queue=_MAX_QUEUE, threads=1, statistics_sample=0)
    with held_runs() as held:
        app = create_app(settings)
        with running_app(app) as client:
            yield Service(client, held, app.state.normscope.repository.get)
            held.release(1000)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that wait."""
    with ThreadPoolExecutor(8) as opened:
        yield opened


def _post(service: Service, path: str, content: object) -> httpx.Response:
    return httpx.post(service.client.base_url.join(path), json=content, timeout=60)


@pytest.mark.parametrize(("path", "content"), [_V1, _V2])
def test_work_that_waits_is_dropped(service: Service, pool: ThreadPoolExecutor, path: str, content: object) -> None:
    """Of three requests that wait behind a run, one goes away: it counts as 499 and its place is free before that run has ended;
    the other two run together without it, and all are answered right."""
    expected: list[Future[httpx.Response]] = [pool.submit(_post, service, path, content)]
    service.held.began.acquire()
    neighbours = [service.send(path, content) for _ in range(2)]
    leaving = service.send(path, content)
    model = service.find("text")
    service.wait_until(lambda: model.depth == 3)
    assert service.free_places("text") == 0
    leaving.close()
    route = path.replace("text", "{model}")
    service.wait_until(lambda: service.gone(route) == 1)
    assert service.free_places("text") == 1
    service.held.release(2)
    answers = [_answer(neighbour) for neighbour in neighbours]
    assert service.held.sizes == [1, 2]
    first = expected[0].result().json()
    for answer in answers:
        assert _what_counts(answer) == pytest.approx(_what_counts(first), abs=1e-5)
    assert service.free_places("text") == _MAX_QUEUE


def _answer(connection: socket.socket) -> dict[str, object]:
    """The JSON of the answer that comes next."""
    with connection:
        response = b""
        while b"\r\n\r\n" not in response:
            response += connection.recv(65536)
        head, _, body = response.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        (length,) = [int(line.partition(b":")[2]) for line in head.splitlines() if line.lower().startswith(b"content-length")]
        while len(body) < length:
            body += connection.recv(65536)
    answer: dict[str, object] = json.loads(body)
    return answer


def _what_counts(answer: dict[str, object]) -> list[float]:
    """The scores or the logits."""
    if "outputs" in answer:
        return list(answer["outputs"][0]["data"])  # type: ignore[index]  # as the protocol has it
    return [label["score"] for label in answer["predictions"][0]["labels"]]  # type: ignore[index]  # as the schema has it


def test_photos_that_wait_are_not_run(service: Service, pool: ThreadPoolExecutor) -> None:
    """Likewise for several inputs of one request that are decoded before they wait."""
    files = [("image", image()), ("image", image())]

    def post() -> httpx.Response:
        return httpx.post(service.client.base_url.join("/v1/models/vision/predict"), files=files[:1], timeout=60)

    answered = pool.submit(post)
    service.held.began.acquire()
    prepared = httpx.Request("POST", "http://x/v1/models/vision/predict", files=files)
    body = prepared.read()
    head = f"POST /v1/models/vision/predict HTTP/1.1\r\nHost: x\r\nContent-Type: {prepared.headers['Content-Type']}\r\n"
    address = (service.client.base_url.host, service.client.base_url.port or 0)
    with socket.create_connection(address) as leaving:
        leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        service.wait_until(lambda: service.find("vision").depth == 2)
    service.wait_until(lambda: service.gone("/v1/models/{model}/predict") == 1)
    service.held.release()
    assert answered.result().status_code == 200
    last = pool.submit(post)
    service.held.release()
    assert last.result().status_code == 200
    assert service.held.sizes == [1, 1]


@pytest.mark.parametrize(("path", "content"), [_V1, _V2])
def test_who_goes_away_while_sending_gives_the_place_back(service: Service, path: str, content: object) -> None:
    """A body that breaks off: 499, a free place, no run, and the next request is answered."""
    leaving = [service.send(path, content, missing=1) for _ in range(_MAX_QUEUE)]
    service.wait_until(lambda: service.free_places("text") == 0)
    for connection in leaving:
        connection.close()
    route = path.replace("text", "{model}")
    service.wait_until(lambda: service.gone(route) == _MAX_QUEUE)
    assert service.free_places("text") == _MAX_QUEUE
    service.held.release()
    assert _post(service, path, content).status_code == 200
    assert service.held.sizes == [1]


def test_who_goes_away_during_the_run_harms_nobody(service: Service, pool: ThreadPoolExecutor) -> None:
    """Two requests share a run, one goes away meanwhile: its place is free at once, the other one is answered."""
    path, content = _V1
    blocking = pool.submit(_post, service, path, content)
    service.held.began.acquire()
    leaving = service.send(path, content)
    staying = service.send(path, content)
    service.wait_until(lambda: service.find("text").depth == 2)
    service.held.release()
    service.held.began.acquire()
    assert service.held.sizes == [1, 2]
    leaving.close()
    service.wait_until(lambda: service.gone("/v1/models/{model}/predict") == 1)
    assert service.free_places("text") == _MAX_QUEUE - 1
    service.held.release()
    assert _answer(staying)["model"] == "text"
    assert blocking.result().status_code == 200


def test_requests_behind_that_of_a_client_that_is_gone_never_begin(service: Service) -> None:
    """A client sends two requests at once and goes away: the first is dropped while it waits, the second is never begun."""
    path, content = _V1
    with service.send(path, content) as first:
        service.held.began.acquire()
        two = service.send(path, content)
        body = json.dumps(content).encode()
        two.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % path.encode())
        two.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        service.wait_until(lambda: service.find("text").depth == 1)
        service.client.get("/livez")  # answered after what was sent before has been read
        two.close()
        service.wait_until(lambda: service.gone("/v1/models/{model}/predict") == 1)
        service.held.release()
        assert _answer(first)["model"] == "text"
    assert service.held.sizes == [1]
    assert service.free_places("text") == _MAX_QUEUE


def test_a_model_is_unloaded_although_a_client_is_gone(service: Service) -> None:
    """Places of clients that are gone do not hold up the end of a model."""
    path, content = _V1
    leaving = service.send(path, content, missing=1)
    service.wait_until(lambda: service.free_places("text") < _MAX_QUEUE)
    done = threading.Event()

    def unload() -> None:
        assert httpx.post(service.client.base_url.join("/v2/repository/models/text/unload"), timeout=60).status_code == 200
        done.set()

    thread = threading.Thread(target=unload)
    thread.start()
    service.wait_until(lambda: service.client.get("/v2/models/text/ready").status_code == 404)
    assert not done.is_set()
    leaving.close()
    thread.join()
    assert done.is_set()
