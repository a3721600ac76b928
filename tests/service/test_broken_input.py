"""Broken images, tensors and JSON by the hundred against a real server: always the client's error, and the server goes on.

What is random is so by the seed, so that a failure can be repeated. Damage may leave a request good: 200 is no failure, 5xx is; so
is a record at `error` in the log, with which a fault of the service comes.
"""

import base64
import json
import logging
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from service.settings import Settings
from tests.broken import Random, compressed, damaged, integers, lying_length, no_images, photos, spoilt
from tests.conftest import SmallRepository, running_server
from tests.service.api.oip.wire import TEXT, VISION, elements, pixels, request, text, tokens

_PREDICT = "/v1/models/{}/predict"
_LENGTH = "Inference-Header-Content-Length"
_JSON = (b"Content-Type", b"application/json")
_SEEDS = range(6)
_EACH = 40


@pytest.fixture(scope="module")
def server(small_repository: SmallRepository) -> Iterator[httpx.Client]:
    """A server with small limits, so that bombs need not be large."""
    settings = Settings(model_repository=small_repository.folder, max_image_pixels=1_000_000, max_body_bytes=1_000_000)
    with running_server(settings) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _goes_on(server: httpx.Client, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After each test good requests are answered, and the log tells of no fault."""
    yield
    assert server.post(_PREDICT.format("text"), json={"inputs": "hello"}).status_code == 200
    assert server.post(VISION, json=request(pixels(np.zeros((1, 3, 8, 8), np.float32)))).status_code == 200
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def _check(answer: httpx.Response, *, good: bool = True) -> None:
    """The answer is 4xx, 501 for what is not offered, or 200 if the request may be `good`; an error has its shape."""
    allowed = answer.status_code == 501 or 400 <= answer.status_code < 500 or (good and answer.status_code == 200)
    assert allowed, (answer.status_code, answer.text, answer.request.url, answer.request.headers)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert isinstance(error, str) if answer.request.url.path.startswith("/v2") else error["remedy"]
        assert len(answer.content) < 10_000


def _send_image(server: httpx.Client, way: int, data: bytes) -> httpx.Response:
    """In one of the six ways in which the service takes images."""
    encoded = base64.b64encode(data).decode()
    name = "encoded_image"
    match way:
        case 0:
            return server.post(_PREDICT.format("vision"), content=data, headers={"Content-Type": "image/jpeg"})
        case 1:
            return server.post(_PREDICT.format("vision"), json={"inputs": [encoded]})
        case 2:
            return server.post(_PREDICT.format("vision"), files=[("image", data)])
        case 3:
            return server.post(VISION, json=request({**text(encoded), "name": name}))
        case 4:
            return server.post(VISION, content=data, headers={_LENGTH: "0"})
    binary = elements(data)
    entry = {"name": name, "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(binary)}}
    content = json.dumps(request(entry)).encode()
    return server.post(VISION, content=content + binary, headers={_LENGTH: str(len(content))})


@pytest.mark.parametrize("seed", _SEEDS)
def test_damaged_images(server: httpx.Client, seed: int) -> None:
    """Photos of every format that are cut, changed and mixed up, in every way in which images are sent."""
    random, good = np.random.default_rng(seed), photos()
    for i in range(_EACH):
        _check(_send_image(server, i % 6, damaged(random, good[i % len(good)])))


@pytest.mark.parametrize("name", no_images())
def test_what_is_no_image(server: httpx.Client, name: str) -> None:
    """Other files, and headers that declare more pixels than the limit or hold bombs, are refused in every way."""
    data = no_images()[name]
    for way in range(6):
        _check(_send_image(server, way, data), good=False)


@pytest.mark.parametrize("seed", _SEEDS)
def test_spoilt_json(server: httpx.Client, seed: int) -> None:
    """Wrong types, deep nesting, NaN, huge numbers, half surrogate pairs, broken UTF-8 and syntax in every JSON that is read."""
    random = np.random.default_rng(seed)
    photo = base64.b64encode(photos()[0]).decode()
    parameters = {"layer_statistics": "summary", "binary_data_output": False, "priority": 1, "custom": "x"}
    outputs = [{"name": "logits", "parameters": {"classification": 1}}, {"name": "statistics.before.mean"}]
    good = [
        (_PREDICT.format("text"), {"inputs": ["hello", "what"]}),
        (_PREDICT.format("vision"), {"inputs": photo}),
        (TEXT, request(text("hello", "what"), id="1", parameters=parameters, outputs=outputs)),
        (TEXT, request(*tokens([[5, 6, 7], [8, 9, 10]]), parameters={})),
        (VISION, request(pixels(np.ones((1, 3, 4, 4), np.float32)), outputs=outputs)),
        ("/v2/repository/index", {"ready": True}),
        ("/v2/repository/models/text/load", {"parameters": {"x": 1}}),
        ("/v2/repository/models/nope/unload", {"parameters": {"unload_dependents": False}}),
    ]
    for i in range(2 * _EACH):
        path, content = good[i % len(good)]
        _check(server.post(path, content=spoilt(random, content), headers=[_JSON]))


@pytest.mark.parametrize("seed", _SEEDS)
def test_spoilt_binary_tensors(server: httpx.Client, seed: int) -> None:
    """Shapes, datatypes and lengths that lie, data that are cut or changed, JSON that is damaged, in requests with binary data."""
    random = np.random.default_rng(seed)
    for i in range(2 * _EACH):
        path, content, data = _binary_request(random, i % 3)
        content = spoilt(random, json.loads(content)) if random.random() < 0.7 else content
        data = damaged(random, data) if random.random() < 0.5 else data
        length = str(len(content)) if random.random() < 0.8 else lying_length(random, len(content))
        _check(server.post(path, content=content + data, headers=[(_LENGTH.encode(), length.encode("latin-1"))]))


def _binary_request(random: Random, kind: int) -> tuple[str, bytes, bytes]:
    """URL, JSON and data of a request that would be good but for its numbers."""
    ids = integers(random, 6) if random.random() < 0.3 else random.integers(0, 50, 6)
    mask = [0, 1, 1, 0, 1, 1]
    values = {
        0: [("text", "BYTES", [2], elements(b"hello", random.bytes(20) if random.random() < 0.3 else b"what"))],
        1: [
            ("input_ids", "INT64", [2, 3], b"".join((int(each) & (2**64 - 1)).to_bytes(8, "little") for each in ids)),
            ("attention_mask", "INT64", [2, 3], np.array(mask, "<i8").tobytes()),
        ],
        2: [("image", "FP32", [1, 3, 4, 4], random.bytes(4 * 48))],
    }[kind]
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, datatype, shape, data in values
    ]
    parameters = {"layer_statistics": "channels"} if random.random() < 0.3 else {}
    content = json.dumps(request(*inputs, parameters=parameters)).encode()
    return VISION if kind == 2 else TEXT, content, b"".join(data for *_, data in values)


@pytest.mark.parametrize("seed", _SEEDS)
def test_broken_compression(server: httpx.Client, seed: int) -> None:
    """Bombs, lies about the encoding, and compressed bodies that are cut or changed."""
    random = np.random.default_rng(seed)
    good = json.dumps(request(text("hello"))).encode()
    for path in (TEXT, "/v2/repository/index", _PREDICT.format("text")) * 10:
        data, encoding = compressed(random, good)
        _check(server.post(path, content=data, headers=[(b"Content-Encoding", encoding.encode()), _JSON]))


@pytest.mark.parametrize("seed", _SEEDS)
def test_damaged_multipart(server: httpx.Client, seed: int) -> None:
    """Parts, their heads and the type of the body that are cut or changed."""
    random = np.random.default_rng(seed)
    photo = photos()[0]
    for i in range(_EACH):
        good = httpx.Request("POST", "http://x", files=[("image", ("a.jpg", photo, "image/jpeg")), ("image", photo)])
        body, kind = good.read(), good.headers["Content-Type"].encode()
        if i % 2:
            head = body.index(b"\r\n\r\n")
            body = damaged(random, body[:head]) + body[head:] if i % 4 == 1 else damaged(random, body)
        else:
            options = [b"; charset=utf-16", b"; charset=idna", b"; charset=zlib", b"; boundary*=a", b'; boundary="', b"; boundary="]
            kind += options[i // 2 % len(options)]
        _check(server.post(_PREDICT.format("vision"), content=body, headers=[(b"Content-Type", kind)]))


_QUERIES = ["top_k=0", "top_k=1e3", f"top_k={'9' * 5000}", "top_k=%00", "version=", "version=%00", "version=../1", "version=%ff%fe"]
_QUERIES += [
    "timeout_ms=nan",
    "timeout_ms=-inf",
    "timeout_ms=0",
    "statistics=all",
    "statistics=summary&layers=[",
    "layers=%00",
    "=",
    "&&&",
]
_QUERIES += [
    "statistics=summary&layers=" + "*a" * 900,
    "statistics=channels&layers=" + ",".join("[!z]" * 400),
    "a[b]=1",
    "%",
    "%zz",
]
_PATHS = [
    "/v1/models/%00/predict",
    "/v1/models/%ff/predict",
    "/v2/models/%2e%2e/infer",
    "/v2/models/..%2f..%2fetc/infer",
    "//v1/models",
]
_PATHS += [
    "/v2/models/text/versions/%0a/infer",
    "/v2/models//infer",
    "/v2/models/" + "a" * 9000,
    "/v1/models/text/predict%00",
    "/v2%2fmodels",
]
_PATHS += ["/v2/repository/models/..%2f..%2f/load", "/v2/repository/models/%2e%2e/load", "/v2/repository/models/%00/load"]


@pytest.mark.parametrize("url", [f"{_PREDICT.format('text')}?{query}" for query in _QUERIES] + _PATHS)
def test_strange_urls(server: httpx.Client, url: str) -> None:
    """Queries and paths that mean nothing."""
    target = httpx.URL(server.base_url).copy_with(raw_path=url.encode())
    _check(server.post(target, json={"inputs": "hello"}), good="layers" in url or "&" in url or "%z" in url or url.endswith("%"))
    if "/predict?" in url:
        target = httpx.URL(server.base_url).copy_with(raw_path=url.replace("/predict", "/statistics").encode())
        _check(server.get(target))
