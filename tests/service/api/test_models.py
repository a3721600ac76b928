"""The routes that describe models, traffic and health, against a real server."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.networks import SENTENCES


def test_models_are_listed(client: httpx.Client) -> None:
    """Every model of the repository is listed with its version, task, state and number of probes."""
    models = {model["name"]: model for model in client.get("/v1/models").json()["models"]}
    assert set(models) == {"vision", "text"}
    assert models["vision"] == {
        "name": "vision",
        "version": "1",
        "task": "image-classification",
        "ready": True,
        "layers": 20 + 5,  # stem 1, 5 blocks of 3, 4 projections; 5 adds
        "versions": [{"version": "1", "state": "READY", "reason": ""}],
    }


def test_card(client: httpx.Client) -> None:
    """The card has task, inputs, labels, preprocessing, metrics and provenance."""
    card = client.get("/v1/models/text").json()
    assert card["task"] == "text-classification"
    assert [spec["name"] for spec in card["inputs"]] == ["input_ids", "attention_mask"]
    assert {"labels", "metrics", "training", "preprocessing", "files", "libraries"} <= set(card)


def test_layers_are_listed_in_the_order_of_execution(client: httpx.Client) -> None:
    """Every probe with kind, shape, channel axis, epsilon, gamma and beta; names are module paths."""
    layers = client.get("/v1/models/text/layers").json()["layers"]
    assert [layer["layer"] for layer in layers[:3]] == [
        "embedding_norm",
        "blocks.0.attention_norm.add",
        "blocks.0.attention_norm",
    ]
    norm, add = layers[0], layers[1]
    assert (norm["kind"], norm["shape"], norm["channel_axis"]) == ("layer_norm", ["batch", "length", 16], 2)
    assert norm["epsilon"] == pytest.approx(1e-5)
    assert set(norm["gamma"]) == set(norm["beta"]) == {"mean", "std", "min", "max"}
    assert (add["kind"], add["gamma"], add["beta"], add["epsilon"]) == ("residual_add", None, None, None)


@pytest.mark.parametrize("route", ["", "/text", "/text/layers"])
def test_unknown_parameters_are_refused(client: httpx.Client, route: str) -> None:
    """A misspelt version must not be answered by another one."""
    assert client.get(f"/v1/models{route}", params={"verison": "2"}).status_code == 422


@pytest.mark.parametrize("route", ["", "/layers", "/statistics"])
def test_unknown_model(client: httpx.Client, route: str) -> None:
    """An unknown model is 404 and the error lists the known ones."""
    answer = client.get(f"/v1/models/nope{route}")
    assert answer.status_code == 404
    assert set(answer.json()["error"]["limit"]) == {"text", "vision"}


def test_traffic_counts_every_request(small_repository: SmallRepository) -> None:
    """With a sample of 1, statistics over traffic are the pooled statistics of the single requests."""
    with running_server(Settings(model_repository=small_repository.folder, statistics_sample=1)) as client:
        before = client.get("/v1/models/text/statistics").json()
        assert (before["requests"], before["sampled"]) == (0, 0)
        assert before["layers"][0]["before"]["mean"] is None
        url = "/v1/models/text/predict?statistics=summary"
        sides = [
            client.post(url, json={"inputs": text}).json()["predictions"][0]["layers"][1] for text in (SENTENCES[0], SENTENCES[1])
        ]
        client.post("/v1/models/text/predict", json={"inputs": SENTENCES[2]})
        sides.append(client.post(url, json={"inputs": SENTENCES[2]}).json()["predictions"][0]["layers"][1])
        sides.append(sides[-1])  # sent without statistics before, counted all the same
        total = client.get("/v1/models/text/statistics?layers=blocks.0.attention_norm.add").json()
        assert (total["requests"], total["sampled"]) == (4, 4)
        (layer,) = total["layers"]
        pooled = layer["sum"]
        count = sum(side["sum"]["count"] for side in sides)
        mean = sum(side["sum"]["count"] * side["sum"]["mean"] for side in sides) / count
        second = sum(side["sum"]["count"] * (side["sum"]["var"] + side["sum"]["mean"] ** 2) for side in sides) / count
        assert pooled["count"] == count
        assert pooled["mean"] == pytest.approx(mean, rel=1e-6, abs=1e-9)
        assert pooled["var"] == pytest.approx(second - mean**2, rel=1e-6)
        assert pooled["min"] == min(side["sum"]["min"] for side in sides)
        assert pooled["max"] == max(side["sum"]["max"] for side in sides)
        ratios = [side["residual_ratio"] for side in sides]
        spread = {"mean": np.mean(ratios), "std": np.std(ratios), "min": min(ratios), "max": max(ratios)}
        assert layer["residual_ratio"] == pytest.approx(spread)


def test_traffic_statistics_can_be_switched_off(small_repository: SmallRepository) -> None:
    """With a sample of 0 nothing is counted, and a request may still ask for its own statistics."""
    with running_server(Settings(model_repository=small_repository.folder, statistics_sample=0)) as client:
        url = "/v1/models/text/predict"
        plain = client.post(url, json={"inputs": SENTENCES[0]}).json()["predictions"][0]
        watched = client.post(f"{url}?statistics=summary", json={"inputs": SENTENCES[0]}).json()["predictions"][0]
        for one, other in zip(plain["labels"], watched["labels"], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert watched["layers"]
        total = client.get("/v1/models/text/statistics").json()
        assert (total["requests"], total["sampled"]) == (2, 0)


def test_health_and_page(client: httpx.Client) -> None:
    """Live and ready are 200, and / names the models and links to the rest."""
    assert client.get("/livez").json()["status"] == "live"
    assert client.get("/readyz").json() == {"status": "ready", "reason": None}
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for link in ("/docs", "/v1/models/vision/layers", "/v1/models/text/statistics", "/metrics"):
        assert f'"{link}"' in page.text
    assert client.get("/docs").status_code == 200


def test_metrics(client: httpx.Client) -> None:
    """Prometheus sees requests by route and status, latency, inference time and batch size; unknown models make no series."""
    client.post("/v1/models/text/predict", json={"inputs": SENTENCES})
    client.get("/v1/models/a-name-that-nobody-serves")
    text = client.get("/metrics").text
    assert 'normscope_requests_total{method="POST",model="text",route="/v1/models/{model}/predict",status="200"}' in text
    for name in ("normscope_request_seconds_bucket", "normscope_inference_seconds_count", "normscope_batch_size_sum"):
        assert name in text
    assert "a-name-that-nobody-serves" not in text


def test_every_schema_has_an_example(client: httpx.Client) -> None:
    """Every schema under /docs has an example, and so has the body of a prediction."""
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert not [name for name, schema in schemas.items() if "example" not in schema]
    assert set(schemas) >= {"PredictAnswer", "LayerList", "TrafficAnswer", "ErrorAnswer", "ModelCard", "ModelList", "Health"}
    body = document["paths"]["/v1/models/{model}/predict"]["post"]["requestBody"]["content"]
    assert "example" in body["application/json"]["schema"]


def test_a_broken_model_is_reported_and_never_ready(small_repository: SmallRepository, tmp_path: Path) -> None:
    """A graph that cannot run keeps /readyz at 503 with the reason, and a prediction answers 503 instead of 500."""
    folder = tmp_path / "text" / "1"
    folder.mkdir(parents=True)
    for file in (small_repository.folder / "text" / "1").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["layers"][0]["tensors"]["before"] = "no-such-tensor"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with running_server(Settings(model_repository=tmp_path)) as client:
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "failed")
        assert "no-such-tensor" in ready.json()["reason"]
        answer = client.post("/v1/models/text/predict", json={"inputs": "hello"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"]
