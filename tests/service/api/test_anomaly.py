"""anomaly=true against a real server: small models with references, and one without."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from models.artifact import load_artifact, write_manifest
from models.statistics.layers import SideLayout
from models.statistics.moments import Floats
from models.statistics.reference import Reference
from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.networks import SENTENCES
from tests.references import SAMPLES, copy_with_references
from tests.service.api.test_predict import image

_MODELS: dict[str, dict[str, Any]] = {
    "text": {"json": {"inputs": SENTENCES}},
    "vision": {"files": [("image", image()), ("image", image(size=(60, 50)))]},
}


@pytest.fixture(scope="module")
def repository(small_repository: SmallRepository, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both small models with references."""
    return copy_with_references(small_repository.folder, tmp_path_factory.mktemp("referenced"))


@pytest.fixture(scope="module")
def referenced(repository: Path) -> Iterator[httpx.Client]:
    """A server of them."""
    with running_server(Settings(model_repository=repository)) as opened:
        yield opened


def values_of(layout: SideLayout, layers: list[dict[str, Any]]) -> Floats:
    """The request values (1, V) that an answer of statistics=summary tells."""
    by_name = {layer["layer"]: layer for layer in layers}
    sides = [by_name[layer.layer][side] for layer, side in layout.rows]
    adds = [by_name[layer.layer] for layer in layout.adds]
    row = [side[name] for name in ("mean", "std", "l2") for side in sides]
    return np.array([row + [add[name] for name in ("residual_ratio", "cosine") for add in adds]], np.float64)


@pytest.mark.parametrize("model", list(_MODELS))
def test_the_answer_is_that_of_the_reference(referenced: httpx.Client, repository: Path, model: str) -> None:
    """Every input has the score, the p-value and the layers that the statistics of the same answer have against the reference."""
    answer = referenced.post(f"/v1/models/{model}/predict?anomaly=true&statistics=channels", **_MODELS[model])
    assert answer.status_code == 200, answer.text
    artifact = load_artifact(repository / model / "1")
    layout = SideLayout(tuple(artifact.manifest.layers))
    reference = Reference.load(artifact, layout)
    assert reference is not None
    scorer = reference.scorer(layout)
    assert scorer is not None
    assert scorer.needs_channels
    for prediction in answer.json()["predictions"]:
        by_name = {layer["layer"]: layer for layer in prediction["layers"]}
        shown = [layout.rows[row] for row in scorer.channels.rows]
        means = np.concatenate([by_name[layer.layer][side]["channels"]["mean"] for layer, side in shown])
        found = scorer.score(values_of(layout, prediction["layers"]), means[None])
        anomaly = prediction["anomaly"]
        assert anomaly["score"] == pytest.approx(found.score[0], abs=1e-4)
        assert anomaly["p_value"] == pytest.approx(found.p_value[0], abs=1.5 / (SAMPLES + 1))
        names = [layer.layer for layer in layout.layers]
        contributions = dict(zip(names, found.contributions[0].tolist(), strict=True))
        listed = [each["contribution"] for each in anomaly["layers"]]
        assert 0 < len(listed) <= 5
        assert listed == sorted(listed, reverse=True)
        assert listed[0] == pytest.approx(max(contributions.values()), abs=1e-4)
        for each in anomaly["layers"]:
            assert each["contribution"] == pytest.approx(contributions[each["layer"]], abs=1e-4)


def test_any_level_of_statistics_goes_with_it(referenced: httpx.Client) -> None:
    """The score is the same at every level; none lists no layers, and without anomaly there is no score."""
    levels = ("none", "summary", "channels", "histogram&layers=embedding_norm")
    answers = [
        referenced.post(f"/v1/models/text/predict?anomaly=true&statistics={level}", **_MODELS["text"]).json()["predictions"]
        for level in levels
    ]
    for answer in answers:
        for prediction, first in zip(answer, answers[0], strict=True):
            assert prediction["anomaly"]["score"] == pytest.approx(first["anomaly"]["score"], abs=1e-3)
    assert ["layers" in answer[0] for answer in answers] == [False, True, True, True]
    plain = referenced.post("/v1/models/text/predict?statistics=summary", **_MODELS["text"]).json()["predictions"]
    assert all("anomaly" not in prediction for prediction in plain)


def test_a_strange_input_is_told_from_an_ordinary_one(referenced: httpx.Client) -> None:
    """The reference of random photos holds nothing like a picture of one colour; more of the same words are ordinary."""
    answer = referenced.post("/v1/models/text/predict?anomaly=true", json={"inputs": SENTENCES}).json()
    assert max(prediction["anomaly"]["p_value"] for prediction in answer["predictions"]) > 0.1
    strange = referenced.post("/v1/models/vision/predict?anomaly=true", **_MODELS["vision"]).json()
    for prediction in strange["predictions"]:
        assert prediction["anomaly"]["p_value"] == pytest.approx(1 / (SAMPLES + 1))
        assert prediction["anomaly"]["score"] > 1


@pytest.mark.parametrize("model", list(_MODELS))
def test_without_a_reference_the_error_says_how_to_make_one(client: httpx.Client, model: str) -> None:
    """409, and the remedy is the command."""
    answer = client.post(f"/v1/models/{model}/predict?anomaly=true", **_MODELS[model])
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "no_reference"
    assert "python -m models reference" in answer.json()["error"]["remedy"]
    assert client.post(f"/v1/models/{model}/predict?anomaly=false", **_MODELS[model]).status_code == 200


def test_a_reference_of_before_there_were_scores(repository: Path, tmp_path: Path) -> None:
    """The model is served and compared as before; only the score is refused, with the remedy."""
    copy_with_references(repository, tmp_path)
    artifact = load_artifact(tmp_path / "text" / "1")
    layout = SideLayout(tuple(artifact.manifest.layers))
    reference = Reference.load(artifact, layout)
    assert reference is not None
    Reference(reference.values, reference.mean, reference.var).save(artifact.folder)
    write_manifest(artifact.folder, artifact.manifest, list(artifact.manifest.files))
    with running_server(Settings(model_repository=tmp_path)) as opened:
        answer = opened.post("/v1/models/text/predict?anomaly=true", **_MODELS["text"])
        assert answer.status_code == 409
        assert "a reference without scores" in answer.json()["error"]["message"]
        assert opened.post("/v1/models/text/predict", **_MODELS["text"]).status_code == 200


@pytest.mark.parametrize("anomaly", ["", "maybe", "2"])
def test_what_is_neither_true_nor_false_is_refused(referenced: httpx.Client, anomaly: str) -> None:
    """422 that names the parameter."""
    answer = referenced.post(f"/v1/models/text/predict?anomaly={anomaly}", **_MODELS["text"])
    assert answer.status_code == 422
    assert "anomaly" in answer.json()["error"]["message"]


def test_statistics_that_are_not_finite_give_null(repository: Path, tmp_path: Path) -> None:
    """A score of infinity is null in JSON, at the smallest p-value, and the layers that are not finite are named."""
    copy_with_references(repository, tmp_path)
    artifact = load_artifact(tmp_path / "text" / "1")
    broken = [layer.layer for layer in artifact.manifest.layers if layer.kind == "layer_norm"][-1]
    model = onnx.load(artifact.model_path)
    (gamma,) = (node.input[1] for node in model.graph.node if node.name == broken)
    (weights,) = (each for each in model.graph.initializer if each.name == gamma)
    weights.CopyFrom(numpy_helper.from_array(np.full(weights.dims, np.inf, np.float32), gamma))
    onnx.save(model, artifact.model_path)
    write_manifest(artifact.folder, artifact.manifest, list(artifact.manifest.files))
    with running_server(Settings(model_repository=tmp_path)) as opened:
        answer = opened.post("/v1/models/text/predict?anomaly=true", **_MODELS["text"])
    assert answer.status_code == 200, answer.text
    for prediction in answer.json()["predictions"]:
        assert prediction["anomaly"]["score"] is None
        assert prediction["anomaly"]["p_value"] == pytest.approx(1 / (SAMPLES + 1))
        assert prediction["anomaly"]["layers"] == [{"layer": broken, "contribution": None}]
