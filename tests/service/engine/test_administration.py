"""Many changes of models at once over real connections: they wait for each other, and nobody waits for them."""

import socket
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from models.graph_import import ImportOptions, import_graph
from service.app import create_app
from service.settings import Settings
from tests.conftest import running_app
from tests.graphs import WIDTH, block, save
from tests.service.api.oip.wire import with_binary

_CHANGES = 50  # more than the framework has threads
_LENGTH = 3000  # so many rows that their bytes are read on such a thread


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    """Serves the models `one` and `two`."""
    for name in ("one", "two"):
        import_graph(save(block(), tmp_path / f"{name}.onnx"), tmp_path / "repository" / name / "1", ImportOptions())
    return create_app(Settings(model_repository=tmp_path / "repository"))


def _unload(url: httpx.URL, model: str) -> socket.socket:
    """The connection of a request to unload a model."""
    connection = socket.create_connection((url.host, url.port or 0), timeout=60)
    head = f"POST /v2/repository/models/{model}/unload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def _await_reading(client: httpx.Client) -> None:
    """Until what was sent on other connections has been read: a new one is read after them."""
    assert httpx.get(client.base_url.join("/v2/models")).status_code == 404


def _infer(client: httpx.Client, model: str) -> int:
    """The status of a request with a large body."""
    values = np.ones((1, _LENGTH, WIDTH), np.float32)
    body, headers = with_binary("x", "FP32", list(values.shape), values.tobytes())
    return client.post(f"/v2/models/{model}/infer", content=body, headers=headers).status_code


def test_the_index_lists_what_waits_to_be_loaded(app: FastAPI) -> None:
    """A version whose folder comes while the service runs is in the index, not ready, until its model is loaded."""
    settings = app.state.normscope.settings

    def index(client: httpx.Client, *, ready: bool) -> dict[str, str]:
        entries = client.post("/v2/repository/index", json={"ready": ready}).json()
        return {f"{entry['name']}/{entry['version']}": entry["state"] for entry in entries}

    with running_app(app) as client:
        import_graph(
            save(block(), settings.model_repository / "new.onnx"), settings.model_repository / "new" / "7", ImportOptions()
        )
        known = {"one/1": "READY", "two/1": "READY"}
        assert index(client, ready=False) == known | {"new/7": "UNAVAILABLE"}
        assert index(client, ready=True) == known
        assert client.post("/v2/repository/models/new/load").status_code == 200
        assert index(client, ready=True) == known | {"new/7": "READY"}


def test_changes_that_wait_hold_up_nobody(app: FastAPI) -> None:
    """While 50 requests to unload a model wait for one in hand, health is answered, and large bodies to another are read; then all
    are answered 200, and the model can be loaded again."""
    with running_app(app) as client, ExitStack() as stack:
        with app.state.normscope.repository.reserve("one"):
            waiting = [stack.enter_context(_unload(client.base_url, "one")) for _ in range(_CHANGES)]
            _await_reading(client)
            assert client.get("/livez").status_code == 200
            assert client.get("/readyz").status_code == 200
            assert _infer(client, "two") == 200
        for connection in waiting:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert client.post("/v2/repository/models/one/load").status_code == 200
        assert _infer(client, "one") == 200


def test_a_change_is_made_although_its_client_is_gone(app: FastAPI) -> None:
    """Of two clients that ask to unload a model the second one goes away while it waits for the first: both models are unloaded."""
    gone = 'normscope_requests_total{method="POST",model="two",route="/v2/repository/models/{model}/unload",status="499"}'
    with running_app(app) as client, ExitStack() as stack:
        repository = app.state.normscope.repository
        with repository.reserve("one"):
            first = stack.enter_context(_unload(client.base_url, "one"))
            with _unload(client.base_url, "two"):
                _await_reading(client)
            while gone not in client.get("/metrics").text:
                pass
            assert repository.ready_names == ["two"]
        assert first.recv(100).startswith(b"HTTP/1.1 200")
        while repository.ready_names:
            assert client.get("/livez").status_code == 200
