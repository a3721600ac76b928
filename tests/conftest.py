"""Fixtures that several test folders share: a small model repository and a real server that serves it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import hypothesis
import pytest
from fastapi import FastAPI

from models.architectures.resnet import ResNet
from models.architectures.transformer import TransformerClassifier
from service.app import create_app
from service.server import Server
from service.settings import Settings
from tests.networks import write_small_repository

# a busy machine makes no property false
hypothesis.settings.register_profile("normscope", deadline=None)
hypothesis.settings.load_profile("normscope")

SHIPPED = Path(__file__).parent.parent / "models" / "artifacts"


@dataclass(frozen=True)
class SmallRepository:
    """A folder with the artifacts `vision/1` and `text/1`, and the networks they were exported from."""

    folder: Path
    resnet: ResNet
    encoder: TransformerClassifier


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> SmallRepository:
    """Exported once for all tests; never written to."""
    folder = tmp_path_factory.mktemp("repository")
    resnet, encoder = write_small_repository(folder)
    return SmallRepository(folder, resnet, encoder)


@contextmanager
def running_server(settings: Settings) -> Iterator[httpx.Client]:
    """A real server of these settings, ready, and a client of it."""
    with running_app(create_app(settings)) as client:
        yield client


@contextmanager
def running_app(app: FastAPI) -> Iterator[httpx.Client]:
    """The app on a free port, ready, and a client of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=60) as client:
            client.get("/livez").raise_for_status()
            assert app.state.normscope.repository.settled.wait(60)
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="session")
def client(small_repository: SmallRepository) -> Iterator[httpx.Client]:
    """A client of a server with default settings over the small repository."""
    with running_server(Settings(model_repository=small_repository.folder)) as opened:
        yield opened
