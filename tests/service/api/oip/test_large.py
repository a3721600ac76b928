"""Large tensors in and out against a real server: none holds up other requests, what cannot fit is refused unread."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper

from models.graph_import import ImportOptions, import_graph
from service.api.oip import binary, datatypes, inference
from service.api.oip.binary import from_binary
from service.api.oip.datatypes import BYTES, from_json
from service.errors import InvalidRequestError
from service.settings import Settings
from tests import graphs
from tests.conftest import running_server
from tests.held import held_calls
from tests.service.api.oip.wire import array, elements, error, request, with_binary

_BLOCK, _STRINGS = "/v2/models/block/infer", "/v2/models/strings/infer"
_LENGTH = {"Inference-Header-Content-Length": "0"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server of models that take tensors of any length, and give as much."""
    folder = tmp_path_factory.mktemp("large")
    kinds: dict[str, tuple[int, graphs.Shape]] = {
        "strings": (TensorProto.STRING, ["batch", "length"]),
        "scalar": (TensorProto.FLOAT, []),
        "fixed": (TensorProto.INT64, ["batch", 2, 3]),
        "flags": (TensorProto.BOOL, ["batch", "length"]),
    }
    same = {
        name: graphs.graph_of([helper.make_node("Identity", ["x"], ["y"])], {"x": tensor}, {"y": tensor})
        for name, tensor in kinds.items()
    }
    for name, model in {"block": graphs.block(), "types": graphs.types(), **same}.items():
        import_graph(graphs.save(model, folder / f"{name}.onnx"), folder / "repository" / name / "1", ImportOptions())
    with running_server(Settings(model_repository=folder / "repository")) as opened:
        yield opened


def _post_block(client: httpx.Client, length: int) -> httpx.Response:
    x = np.random.default_rng(3).standard_normal((1, length, graphs.WIDTH)).astype(np.float32)
    body, headers = with_binary("x", "FP32", list(x.shape), x.tobytes())
    return client.post(_BLOCK, content=body, headers=headers)


@pytest.mark.parametrize("name", ["parse_request", "make_outputs", "encode_answer"])
def test_other_requests_are_answered_meanwhile(server: httpx.Client, name: str) -> None:
    """Reading a large binary tensor, making a large output and encoding it hold up nobody."""
    with held_calls(inference, name) as held, ThreadPoolExecutor() as pool:
        large = pool.submit(_post_block, server, 3000)
        held.began.acquire()
        assert server.get("/v2/models/block").status_code == 200
        held.release()
        assert array(large.result(), "y").shape == (1, 3000, graphs.WIDTH)


def test_large_outputs_as_json_are_those_of_binary_data(server: httpx.Client) -> None:
    """JSON that is written in parts is the JSON of the whole."""
    x = np.random.default_rng(3).standard_normal((2, 3000, graphs.WIDTH)).astype(np.float32)
    answers = []
    for binary_output in (False, True):
        body, headers = with_binary("x", "FP32", list(x.shape), x.tobytes(), parameters={"binary_data_output": binary_output})
        answers.append(server.post(_BLOCK, content=body, headers=headers))
    assert ["inference-header-content-length" in answer.headers for answer in answers] == [False, True]
    expected = array(answers[1], "y")
    np.testing.assert_array_equal(array(answers[0], "y"), expected)
    content = request({"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()})
    np.testing.assert_allclose(array(server.post(_BLOCK, json=content), "y"), expected, atol=1e-5)


@pytest.mark.parametrize("datatype", ["BYTES", "BOOL", "INT64", "FP32"])
def test_slices_change_nothing(datatype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that are read in slices, flat or nested, are the same; an element of another type is found in each slice."""
    flat: dict[str, list[Any]] = {
        "BYTES": [str(i) for i in range(30)],
        "BOOL": [i % 3 == 0 for i in range(30)],
        "INT64": list(range(30)),
        "FP32": [i / 4 for i in range(30)],
    }
    data, shape = flat[datatype], [5, 2, 3]
    nested = np.array(data, object).reshape(shape).tolist()
    whole = from_json("x", datatype, shape, data)
    monkeypatch.setattr(datatypes, "_SLICE", 4)
    for given in (data, nested):
        np.testing.assert_array_equal(np.asarray(from_json("x", datatype, shape, given)), np.asarray(whole))
    for i in (0, 13, 29):
        with pytest.raises(InvalidRequestError, match="null"):
            from_json("x", datatype, shape, [*data[:i], None, *data[i + 1 :]])
    nested[4][1] = [1]
    with pytest.raises(InvalidRequestError, match="nested"):
        from_json("x", datatype, shape, nested)


def test_strings_that_cannot_be_there_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each element takes four bytes at least; data that are too short for so many are refused unread."""

    def read(*_: object) -> None:
        raise AssertionError("an element was read")

    monkeypatch.setattr(binary, "bytes", read, raising=False)
    with pytest.raises(InvalidRequestError, match="5 elements"):
        from_binary("x", BYTES, [5], memoryview(elements(b"", b"", b"", b"")))


@pytest.mark.parametrize("as_json", [False, True])
def test_too_many_strings_are_refused(server: httpx.Client, as_json: bool) -> None:
    """More than a run may hold, before any is read; the error names the setting. As many as it may hold are taken."""
    limit = Settings().max_batch_elements
    for count, status in ((limit + 1, 400), (1000, 200)):
        if as_json:
            entry = {"name": "x", "datatype": "BYTES", "shape": [1, count], "data": ["a"] * count}
            answer = server.post(_STRINGS, json=request(entry))
        else:
            body, headers = with_binary("x", "BYTES", [1, count], elements(b"a") * count)
            answer = server.post(_STRINGS, content=body, headers=headers)
        assert answer.status_code == status
        if status == 400:
            assert f"has {count} strings, more than {limit}" in error(answer)
            assert "NORMSCOPE_MAX_BATCH_ELEMENTS" in error(answer)


def test_strings_in_slices(server: httpx.Client) -> None:
    """Thousands of strings come back in their order; one that is no UTF-8 is named by its place."""
    values = [f"ä{i}".encode() for i in range(40_000)]
    for data, status in ((values, 200), ([*values[:30_000], b"\xff", *values[30_001:]], 400)):
        body, headers = with_binary("x", "BYTES", [2, 20_000], elements(*data))
        answer = server.post(_STRINGS, content=body, headers=headers)
        assert answer.status_code == status
        if status == 200:
            assert [value.encode() for value in answer.json()["outputs"][0]["data"]] == values
        else:
            assert "text 30000 is not UTF-8" in error(answer)


@pytest.mark.parametrize("place", [0, 49_999, 99_999])
def test_a_byte_that_is_no_boolean(server: httpx.Client, place: int) -> None:
    """Wherever it is; the error names it."""
    flags = np.zeros(100_000, np.uint8)
    flags[place] = 7
    body, headers = with_binary("x", "BOOL", [1, 100_000], flags.tobytes())
    assert "neither 0 nor 1" in error(server.post("/v2/models/flags/infer", content=body, headers=headers))


def test_a_raw_tensor(server: httpx.Client) -> None:
    """A body without JSON is one row of the only input; its free dimension is as long as the data."""
    x = np.random.default_rng(3).standard_normal((1, 5, graphs.WIDTH)).astype(np.float32)
    body, headers = with_binary("x", "FP32", [1, 5, graphs.WIDTH], x.tobytes(), parameters={"binary_data_output": True})
    expected = array(server.post(_BLOCK, content=body, headers=headers), "y")
    raw = server.post(_BLOCK, content=x.tobytes(), headers=_LENGTH)
    np.testing.assert_allclose(array(raw, "y"), expected, atol=1e-5)
    assert raw.headers["content-type"] == "application/octet-stream"
    numbers = np.arange(6)
    fixed = server.post("/v2/models/fixed/infer", content=numbers.tobytes(), headers=_LENGTH)
    head = int(fixed.headers["inference-header-content-length"])
    assert json.loads(fixed.content[:head])["outputs"][0]["shape"] == [1, 2, 3]
    assert fixed.content[head:] == numbers.tobytes()
    scalar = server.post("/v2/models/scalar/infer", content=np.float32(0.5).tobytes(), headers=_LENGTH)
    assert scalar.content.endswith(np.float32(0.5).tobytes())
    text = server.post(_STRINGS, content=b"hello", headers=_LENGTH)
    assert text.content.endswith(elements(b"hello"))


@pytest.mark.parametrize(
    ("model", "size", "says"),
    [
        ("block", 33, "33 bytes, FP32 of shape ['length', 8] has 32 or a multiple"),
        ("block", 0, "0 bytes, FP32 of shape ['length', 8] has 32 or a multiple"),
        ("fixed", 96, "96 bytes, INT64 of shape [2, 3] has 48"),
        ("fixed", 47, "47 bytes, INT64 of shape [2, 3] has 48"),
        ("scalar", 8, "8 bytes, FP32 of shape [] has 4"),
        ("types", 8, "send JSON with of_BOOL and"),
    ],
)
def test_a_raw_tensor_that_does_not_fit(server: httpx.Client, model: str, size: int, says: str) -> None:
    """The error names the length of the data and that of the shape; models of several inputs take JSON alone."""
    answer = server.post(f"/v2/models/{model}/infer", content=bytes(size), headers=_LENGTH)
    assert answer.status_code == 400
    assert says in error(answer)
