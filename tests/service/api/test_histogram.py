"""statistics=histogram against a real server: the stages of chosen layers agree with torch, and wrong choices are told."""

from typing import Any

import httpx
import numpy as np
import pytest
import torch

from models.artifact import load_artifact
from models.preprocessing import ImagePreprocessing, TextPreprocessing, decode_image, encode_text, pad_tokens
from models.statistics.distribution import BINS, PERCENTS
from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.networks import SENTENCES, recorded_sides
from tests.oracle import assert_side
from tests.service.test_statistics_against_torch import photo

_PNG = {"Content-Type": "image/png"}


def _predict(client: httpx.Client, layers: str, texts: list[str]) -> list[dict[str, Any]]:
    url = f"/v1/models/text/predict?statistics=histogram&layers={layers}"
    predictions: list[dict[str, Any]] = client.post(url, json={"inputs": texts}).json()["predictions"]
    return predictions


def _assert_distribution(told: dict[str, Any], tensor: np.ndarray[Any, Any], where: str) -> None:
    s = np.sqrt((tensor.astype(np.float64) ** 2).mean())
    assert len(told["histogram"]["counts"]) == BINS
    assert sum(told["histogram"]["counts"]) == told["count"] == tensor.size
    edges = told["histogram"]["edges"]
    np.testing.assert_allclose([edges[0], edges[-1]], [tensor.min(), tensor.max()], atol=1e-4 * s, err_msg=where)
    quantiles = [told["quantiles"][str(percent)] for percent in PERCENTS]
    np.testing.assert_allclose(quantiles, np.percentile(tensor, PERCENTS), atol=1e-4 * s, err_msg=where)


def test_all_stages_of_batch_norms_and_adds(client: httpx.Client, small_repository: SmallRepository) -> None:
    """Every side has its summary, histogram and quantiles as torch has; `normalized` is (after - beta) / gamma of the BatchNorm."""
    data = photo(7)
    url = "/v1/models/vision/predict?statistics=histogram&layers=layer1.*"
    answer = client.post(url, content=data, headers=_PNG).json()
    preprocessing = load_artifact(small_repository.folder / "vision" / "1").manifest.preprocessing
    assert isinstance(preprocessing, ImagePreprocessing)
    with torch.no_grad(), recorded_sides(small_repository.resnet) as recorded:
        small_repository.resnet(torch.from_numpy(preprocessing.apply(decode_image(data)))[None])
    layers = answer["predictions"][0]["layers"]
    assert len(layers) == 9
    for layer in layers:
        sides = {side: tensor[0].numpy() for side, tensor in recorded[layer["layer"]].items()}
        if layer["kind"] == "batch_norm":
            norm = small_repository.resnet.get_submodule(layer["layer"])
            gamma, beta = (parameter.detach().numpy()[:, None, None] for parameter in (norm.weight, norm.bias))  # type: ignore[operator]  # Tensor | Module to mypy
            sides["normalized"] = (sides["after"] - beta) / gamma
        assert set(sides) == {key for key, value in layer.items() if isinstance(value, dict)}
        for side, tensor in sides.items():
            assert_side(layer[side], tensor, f"{layer['layer']}.{side}")
            _assert_distribution(layer[side], tensor, f"{layer['layer']}.{side}")
    assert answer["timing"]["stages_ms"] > 0


def test_texts_of_different_length_without_padding(client: httpx.Client, small_repository: SmallRepository) -> None:
    """Beside a longer text, a short one has the stages of its own tokens alone."""
    artifact = load_artifact(small_repository.folder / "text" / "1")
    assert isinstance(artifact.manifest.preprocessing, TextPreprocessing)
    tokenizer = artifact.manifest.preprocessing.load_tokenizer(artifact.folder)
    texts = [" ".join(SENTENCES), SENTENCES[1]]
    for text, prediction in zip(texts, _predict(client, "*", texts), strict=True):
        ids, mask = pad_tokens([encode_text(tokenizer, text, 24)[0]])
        with torch.no_grad(), recorded_sides(small_repository.encoder) as recorded:
            small_repository.encoder(torch.from_numpy(ids), torch.from_numpy(mask))
        for layer in prediction["layers"]:
            sides = {side: tensor[0].numpy() for side, tensor in recorded[layer["layer"]].items()}
            if layer["kind"] == "layer_norm":
                before = torch.from_numpy(sides["before"])
                sides["normalized"] = torch.nn.functional.layer_norm(before, before.shape[-1:]).numpy()
            for side, tensor in sides.items():
                _assert_distribution(layer[side], tensor, f"{layer['layer']}.{side}")


def test_everything_of_the_summary_is_there(client: httpx.Client) -> None:
    """Labels, scores and every statistic of `summary` are in the answer too, with the same values."""
    body = {"inputs": SENTENCES[0]}
    summary = client.post("/v1/models/text/predict?statistics=summary&layers=blocks.0.*", json=body).json()["predictions"][0]
    (deep,) = _predict(client, "blocks.0.*", [SENTENCES[0]])
    assert [label["label"] for label in deep["labels"]] == [label["label"] for label in summary["labels"]]
    for one, other in zip(deep["layers"], summary["layers"], strict=True):
        for side, statistics in other.items():
            if isinstance(statistics, dict):
                assert {name: one[side][name] for name in statistics} == pytest.approx(statistics, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "query", "says"),
    [
        ("text", "?statistics=histogram", "16 layers"),
        ("vision", "?statistics=histogram&layers=*", "16 layers"),
        ("text", "?statistics=histograms&layers=*", "histogram"),
    ],
)
def test_a_wrong_choice_names_limit_and_remedy(client: httpx.Client, model: str, query: str, says: str) -> None:
    """No layers, too many layers and an unknown level are 422 with the limit and what to do instead."""
    body = photo(1) if model == "vision" else b'{"inputs": "hello"}'
    headers = _PNG if model == "vision" else {"Content-Type": "application/json"}
    answer = client.post(f"/v1/models/{model}/predict{query}", content=body, headers=headers)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert says in str(error["limit"])
    assert error["remedy"]


@pytest.mark.parametrize(("text", "status", "code"), [("\u200b", 422, "invalid_input"), ("hello", 404, "unknown_layer")])
def test_wrong_inputs_are_told_as_ever(client: httpx.Client, text: str, status: int, code: str) -> None:
    """A text that cannot be used and a layer that is not there are the errors that they are for every level."""
    layers = "zzz" if code == "unknown_layer" else "embedding_norm"
    answer = client.post(f"/v1/models/text/predict?statistics=histogram&layers={layers}", json={"inputs": text})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_the_values_of_an_answer_are_bounded(small_repository: SmallRepository) -> None:
    """Histograms count against the limit of values in one answer."""
    limited = Settings(model_repository=small_repository.folder, max_statistics_values=400)
    with running_server(limited) as client:
        url = "/v1/models/text/predict?statistics={}&layers=embedding_norm"
        assert client.post(url.format("summary"), json={"inputs": "hello"}).status_code == 200
        answer = client.post(url.format("histogram"), json={"inputs": "hello"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "too_many_values")


def test_the_time_of_a_request_is_bounded(client: httpx.Client) -> None:
    """A request that gets a thousandth of a millisecond is given up, and the next is answered."""
    url = "/v1/models/text/predict?statistics=histogram&layers=embedding_norm"
    late = client.post(f"{url}&timeout_ms=0.001", json={"inputs": ["hello"] * 32})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert client.post(url, json={"inputs": "hello"}).status_code == 200
