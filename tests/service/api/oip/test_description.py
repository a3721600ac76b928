"""What the server tells of itself under /v2: metadata, configuration, health, counters and the repository."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.artifact import load_artifact
from models.statistics.layers import SideLayout
from service.api.oip.interface import ModelInterface
from service.api.oip.layer_statistics import StatisticsCatalogue
from service.settings import Settings
from tests.conftest import SHIPPED, SmallRepository, running_server
from tests.networks import SENTENCES
from tests.service.api.oip.wire import TEXT, error, request, text


def test_server_metadata(client: httpx.Client) -> None:
    """Name, version, and the extensions that are offered and no others; no redirect at /v2/."""
    metadata = client.get("/v2").json()
    assert set(metadata) == {"name", "version", "extensions"}
    assert metadata["name"] == "normscope"
    assert set(metadata["extensions"]) == {
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "parameters",
        "statistics",
    }
    assert client.get("/v2/").json() == metadata


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_model_metadata(client: httpx.Client, version: str) -> None:
    """All ways in are declared, the encoded one first, under a name that no raw input has; the logits are the only output."""
    metadata = client.get(f"/v2/models/text{version}").json()
    assert metadata == {
        "name": "text",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [-1]},
            {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "attention_mask", "datatype": "INT64", "shape": [-1, -1]},
        ],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
    }
    inputs = client.get(f"/v2/models/vision{version}").json()["inputs"]
    assert inputs == [
        {"name": "encoded_image", "datatype": "BYTES", "shape": [-1]},
        {"name": "image", "datatype": "FP32", "shape": [-1, 3, -1, -1]},
    ]


def test_a_model_without_batch_takes_one_text(small_repository: SmallRepository) -> None:
    """Whatever the first extent of its tensors means; else further texts would be run and their outputs dropped."""
    manifest = load_artifact(small_repository.folder / "text" / "1").manifest
    encoded = ModelInterface.made_of(manifest.model_copy(update={"batched": False}), StatisticsCatalogue(SideLayout(()))).encoded
    assert encoded is not None
    assert encoded.dimensions == (1,)


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_model_configuration(client: httpx.Client, version: str) -> None:
    """Triton's shape: sizes without the batch, every input optional, batching as it is set."""
    config = client.get(f"/v2/models/vision{version}/config").json()
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("vision", "onnxruntime", 32)
    assert config["input"] == [
        {"name": "encoded_image", "data_type": "TYPE_STRING", "dims": [], "optional": True},
        {"name": "image", "data_type": "TYPE_FP32", "dims": [3, -1, -1], "optional": True},
    ]
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [3], "label_filename": ""}]
    assert config["dynamic_batching"] == {"preferred_batch_size": [32], "max_queue_delay_microseconds": 0}
    assert all(set(parameter) == {"string_value"} for parameter in config["parameters"].values())


def test_health(client: httpx.Client) -> None:
    """Server and models, by version too, say that they are live and ready."""
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/text/ready").json() == {"name": "text", "ready": True}
    assert client.get("/v2/models/text/versions/1/ready").json() == {"name": "text", "ready": True}
    assert client.get("/v2/models/text/versions/2/ready").status_code == 404


def _statistics(client: httpx.Client, path: str) -> dict[str, Any]:
    (statistics,) = client.get(path).json()["model_stats"]
    assert isinstance(statistics, dict)
    return statistics


def test_counters(small_repository: SmallRepository) -> None:
    """Requests, inputs and runs since the model was loaded, with the durations of their parts."""
    with running_server(Settings(model_repository=small_repository.folder)) as client:
        assert [each["name"] for each in client.get("/v2/models/stats").json()["model_stats"]] == ["text", "vision"]
        fresh = _statistics(client, "/v2/models/text/stats")
        assert (fresh["inference_count"], fresh["last_inference"], fresh["batch_stats"]) == (0, 0, [])
        assert client.post(TEXT, json=request(text(*SENTENCES))).status_code == 200
        assert client.post(TEXT, json=request(text(" "))).status_code == 400
        counted = _statistics(client, "/v2/models/text/versions/1/stats")
        assert (counted["name"], counted["version"], counted["inference_count"]) == ("text", "1", 4)
        assert counted["last_inference"] > 1_700_000_000_000
        durations = counted["inference_stats"]
        assert {name: duration["count"] for name, duration in durations.items()} == {
            "success": 1,
            "fail": 1,
            "queue": 1,
            "compute_input": 1,
            "compute_infer": 1,
            "compute_output": 1,
        }
        parts = sum(durations[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
        assert 0 < parts <= durations["success"]["ns"]
        assert sum(batch["batch_size"] * batch["compute_infer"]["count"] for batch in counted["batch_stats"]) == 4
        assert sum(batch["compute_infer"]["count"] for batch in counted["batch_stats"]) == counted["execution_count"]


def test_the_repository_is_listed_and_changed(small_repository: SmallRepository) -> None:
    """Index, unload and load with bodies that are empty, or say what they may; models come and go."""
    with running_server(Settings(model_repository=small_repository.folder)) as client:
        index = client.post("/v2/repository/index").json()
        assert index == [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in ("text", "vision")]
        unload = client.post("/v2/repository/models/text/unload", json={"parameters": {"unload_dependents": True}})
        assert (unload.status_code, unload.content) == (200, b"")
        states = {entry["name"]: entry["state"] for entry in client.post("/v2/repository/index", json={}).json()}
        assert states == {"text": "UNAVAILABLE", "vision": "READY"}
        assert [entry["name"] for entry in client.post("/v2/repository/index", json={"ready": True}).json()] == ["vision"]
        assert client.post(TEXT, json=request(text("hello"))).status_code == 404
        assert client.get("/v2/models/text/ready").status_code == 404
        assert [each["name"] for each in client.get("/v2/models/stats").json()["model_stats"]] == ["vision"]
        load = client.post("/v2/repository/models/text/load")
        assert (load.status_code, load.content) == (200, b"")
        assert client.post(TEXT, json=request(text("hello"))).status_code == 200


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("index", b"[]", 400),
        ("index", b'{"ready": "yes"}', 400),
        ("index", b"{", 400),
        ("models/nope/load", b"", 404),
        ("models/nope/unload", b"", 404),
        ("models/text/load", b'{"parameters": []}', 400),
        ("models/text/load", b'{"parameters": {"config": "{}"}}', 501),
        ("models/text/load", b'{"parameters": {"file:1/model.onnx": "AAAA"}}', 501),
        ("models/text/unload", b'{"parameters": {"unload_dependents": 1}}', 400),
    ],
)
def test_wrong_changes_of_the_repository(client: httpx.Client, path: str, content: bytes, status: int) -> None:
    """Bodies that are wrong, models that are not there, and files or a configuration from the client."""
    answer = client.post(f"/v2/repository/{path}", content=content)
    assert answer.status_code == status
    assert error(answer)


def test_a_broken_artifact_does_not_load(small_repository: SmallRepository, tmp_path: Path) -> None:
    """400 with the reason, which the index keeps; the model that serves goes on."""
    shutil.copytree(small_repository.folder / "text", tmp_path / "text")
    with running_server(Settings(model_repository=tmp_path)) as client:
        shutil.copytree(tmp_path / "text" / "1", tmp_path / "text" / "2")
        answer = client.post("/v2/repository/models/text/load")
        assert answer.status_code == 400
        assert "text/2" in error(answer)
        broken = next(entry for entry in client.post("/v2/repository/index").json() if entry["version"] == "2")
        assert (broken["state"], bool(broken["reason"])) == ("UNAVAILABLE", True)
        assert client.post(TEXT, json=request(text("hello"))).json()["model_version"] == "1"


def test_a_model_that_cannot_be_loaded_is_503(small_repository: SmallRepository, tmp_path: Path) -> None:
    """The server is live, not ready, and says why, with Retry-After."""
    shutil.copytree(small_repository.folder / "text", tmp_path / "text")
    (tmp_path / "text" / "1" / "model.onnx").write_bytes(b"broken")
    with running_server(Settings(model_repository=tmp_path)) as client:
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/text/ready", "/v2/models/text", "/v2/models/text/config"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert "text" in error(answer)
        assert client.post(TEXT, json=request(text("hello"))).status_code == 503


def test_documented_examples_work(tmp_path: Path) -> None:
    """Every example of the OpenAPI document for a body is answered 200 by the shipped encoder."""
    shutil.copytree(SHIPPED / "encoder", tmp_path / "encoder")
    with running_server(Settings(model_repository=tmp_path)) as client:
        paths = client.get("/openapi.json").json()["paths"]
        tried = 0
        for path, operations in paths.items():
            content = operations.get("post", {}).get("requestBody", {}).get("content", {}) if path.startswith("/v2") else {}
            for example in content.get("application/json", {}).get("examples", {}).values():
                url = path.format(model="encoder", version="1")
                assert client.post(url, json=example["value"]).status_code == 200, url
                client.post("/v2/repository/models/encoder/load")
                tried += 1
        assert tried >= 9


def test_every_operation_documents_its_own_statuses(client: httpx.Client) -> None:
    """Errors as {"error": text}, 503 wherever the end of the service counts, and no 422, which is never given."""
    document = client.get("/openapi.json").json()
    operations = {path: each for path, each in document["paths"].items() if path.startswith("/v2")}
    assert len(operations) == 17
    for path, methods in operations.items():
        for operation in methods.values():
            statuses = set(operation["responses"])
            assert "422" not in statuses
            assert "503" in statuses or path == "/v2/health/live"
            for status in statuses - {"200"}:
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/OipError"}
