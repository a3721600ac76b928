"""Photos, texts and large tensors are read apart from the event loop, few photos and large tensors at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from models.graph_import import ImportOptions, import_graph
from service.api.oip import inference
from service.app import create_app
from service.engine.inputs import InputReader
from service.settings import Settings
from tests import graphs
from tests.conftest import SmallRepository, running_app
from tests.held import held_calls
from tests.service.api.test_predict import image, post_image

_THREADS, _REQUESTS = 2, 6


def test_photos_decoded_at_once_are_bounded(small_repository: SmallRepository) -> None:
    """Of six photos in hand as many are decoded at once as there are threads; meanwhile others are answered, in the end all are."""
    app = create_app(Settings(model_repository=small_repository.folder, threads=_THREADS, max_queue=_REQUESTS))
    with running_app(app) as client, held_calls(InputReader, "image") as held, ThreadPoolExecutor(_REQUESTS) as clients:
        answers = [clients.submit(post_image, client, image()) for _ in range(_REQUESTS)]
        for _ in range(_THREADS):
            held.began.acquire()
        while app.state.normscope.repository.get("vision").overload is None:
            client.get("/livez")
        assert client.post("/v1/models/text/predict", json={"inputs": "hello"}).status_code == 200
        assert not held.began.acquire(blocking=False)
        held.release(_REQUESTS)
        assert [answer.result().status_code for answer in answers] == [200] * _REQUESTS


def test_large_tensors_read_at_once_are_bounded(tmp_path: Path) -> None:
    """Of six in hand four are read at once; meanwhile others are answered, in the end all are."""
    import_graph(graphs.save(graphs.block(), tmp_path / "block.onnx"), tmp_path / "repository" / "block" / "1", ImportOptions())
    app = create_app(Settings(model_repository=tmp_path / "repository", max_queue=_REQUESTS))
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 9000, graphs.WIDTH], "data": [1] * (9000 * graphs.WIDTH)}
    with running_app(app) as client, held_calls(inference, "parse_request") as held, ThreadPoolExecutor(_REQUESTS) as clients:
        answers = [clients.submit(client.post, "/v2/models/block/infer", json={"inputs": [tensor]}) for _ in range(_REQUESTS)]
        for _ in range(4):
            held.began.acquire()
        while app.state.normscope.repository.get("block").overload is None:
            client.get("/livez")
        assert client.get("/v2/models/block").status_code == 200
        assert not held.began.acquire(blocking=False)
        held.release(_REQUESTS)
        assert [answer.result().status_code for answer in answers] == [200] * _REQUESTS


def test_tokenizing_holds_up_nobody(small_repository: SmallRepository) -> None:
    """While the tokenizer is at work on a long text, requests for another model are answered."""
    app = create_app(Settings(model_repository=small_repository.folder))
    with running_app(app) as client, held_calls(InputReader, "texts") as held, ThreadPoolExecutor(1) as clients:
        answer = clients.submit(client.post, "/v1/models/text/predict", json={"inputs": "hello " * 100})
        held.began.acquire()
        assert post_image(client, image()).status_code == 200
        held.release()
        assert answer.result().status_code == 200
