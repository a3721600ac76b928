"""A model with a reference, asked over HTTP: compared with it, and normalized by it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from models.artifact import load_artifact, write_manifest
from models.statistics.layers import SideLayout
from models.statistics.reference import Reference
from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.networks import SENTENCES
from tests.references import quantities, write_reference

_SAMPLES = 50


@pytest.fixture(scope="module")
def repository(small_repository: SmallRepository, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`text/1` with a reference of known numbers: values are normal, channels have mean 0.5 and variance 4."""
    folder = tmp_path_factory.mktemp("referenced")
    shutil.copytree(small_repository.folder / "text", folder / "text")
    write_reference(folder / "text" / "1", _values(folder), mean=0.5, var=4)
    return folder


def _values(repository: Path) -> NDArray[np.float64]:
    return np.random.default_rng(0).standard_normal((_SAMPLES, quantities(repository / "text" / "1")))


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[httpx.Client]:
    """Of a server that counts every request."""
    with running_server(Settings(model_repository=repository, statistics_sample=1)) as opened:
        yield opened


def test_traffic_is_compared_with_the_reference(client: httpx.Client, repository: Path) -> None:
    """The effect is that of the served requests against the samples of the reference."""
    served = []
    for text in SENTENCES:
        answer = client.post("/v1/models/text/predict?statistics=summary", json={"inputs": text}).json()
        served.append(answer["predictions"][0]["layers"][0]["before"]["l2"])
    params = {"a": "-1h..now", "b": "reference", "layers": "embedding_norm", "side": "before"}
    answer = client.get("/v1/models/text/statistics/compare", params=params).json()
    assert answer["b"] == {"reference": True, "samples": _SAMPLES}
    (found,) = (each for each in answer["differences"] if each["statistic"] == "l2")
    layout = SideLayout(tuple(load_artifact(repository / "text" / "1").manifest.layers))
    row = layout.row_of["embedding_norm", "before"]
    a, b = np.array(served), _values(repository)[:, 2 * len(layout.rows) + row]
    pooled = np.sqrt((a.var() * len(a) + b.var() * len(b)) / (len(a) + len(b) - 2))
    assert (found["requests_a"], found["requests_b"]) == (len(a), _SAMPLES)
    assert found["mean_b"] == pytest.approx(b.mean(), rel=1e-5)
    assert found["effect"] == pytest.approx((a.mean() - b.mean()) / pooled, rel=1e-3)
    everything = client.get("/v1/models/text/statistics/compare", params={"a": "-1h..now", "b": "reference"}).json()
    assert found in everything["differences"]  # the reference is sketched once, for all layers


def test_channels_stand_beside_those_of_the_reference_and_of_training(
    repository: Path, small_repository: SmallRepository, tmp_path: Path
) -> None:
    """Of every side mean and variance over the reference, null without one; before a batch normalization its running mean and
    variance, which the network learned, and nowhere else.
    """
    shutil.copytree(repository / "text", tmp_path / "text")
    shutil.copytree(small_repository.folder / "vision", tmp_path / "vision")
    with running_server(Settings(model_repository=tmp_path, statistics_sample=1)) as opened:
        text, vision = (
            opened.get(f"/v1/models/{model}/statistics/channels", params={"layers": "*"}).json()["layers"]
            for model in ("text", "vision")
        )
    sides = [(layer, side) for layer in text for side in ("before", "after", "identity", "residual", "sum") if side in layer]
    width = small_repository.encoder.config.width
    for layer, side in sides:
        assert layer[side]["reference"] == {"mean": [0.5] * width, "var": [4.0] * width}
        assert layer[side]["training"] is None
    modules = dict(small_repository.resnet.named_modules())
    norms = [layer for layer in vision if layer["kind"] == "batch_norm"]
    assert norms
    for layer in norms:
        module = modules[layer["layer"]]
        assert layer["before"]["training"]["mean"] == pytest.approx(module.running_mean.tolist(), rel=1e-6)
        assert layer["before"]["training"]["var"] == pytest.approx(module.running_var.tolist(), rel=1e-6)
        assert (layer["before"]["reference"], layer["after"]["training"]) == (None, None)
    assert all(layer["sum"]["training"] is None for layer in vision if layer["kind"] == "residual_add")


def test_batch_normalization_takes_the_moments_of_the_reference(client: httpx.Client) -> None:
    """Where a LayerNorm has no running moments those of the reference stand in: (x - 0.5) / 2, then gamma and beta."""
    body = {
        "inputs": SENTENCES[0],
        "changes": [
            {"layer": "embedding_norm", "gamma_scale": 0, "gamma_shift": 1, "beta_scale": 0},
            {"layer": "embedding_norm", "normalization": "batch"},
        ],
    }
    answer = client.post("/v1/models/text/whatif?layers=embedding_norm", json=body)
    assert answer.status_code == 200, answer.text
    (layer,) = answer.json()["predictions"][0]["changed"]["layers"]
    assert layer["after"]["mean"] == pytest.approx((layer["before"]["mean"] - 0.5) / 2, rel=1e-3, abs=1e-5)
    assert layer["after"]["std"] == pytest.approx(layer["before"]["std"] / 2, rel=1e-3)


def test_a_broken_reference_is_a_broken_artifact(repository: Path, tmp_path: Path) -> None:
    """The model is not served with a reference that is not its own, and the reason says how to mend it."""
    shutil.copytree(repository, tmp_path, dirs_exist_ok=True)
    artifact = load_artifact(tmp_path / "text" / "1")
    Reference(np.zeros((3, 7), np.float32), np.zeros(1), np.ones(1)).save(artifact.folder)
    write_manifest(artifact.folder, artifact.manifest, list(artifact.manifest.files))
    with running_server(Settings(model_repository=tmp_path)) as opened:
        answer = opened.get("/readyz")
    assert answer.status_code == 503
    assert "models reference" in answer.text
