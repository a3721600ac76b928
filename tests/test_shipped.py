"""The two models in the repository are what their manifests say, and their statistics are right by the stated tolerances.

Tests of real data run where NORMSCOPE_IMAGENETTE (the archive) and NORMSCOPE_CLINC150 (data_full.json) name local files.
"""

import asyncio
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import service.engine.inputs
from models.artifact import load_artifact, write_manifest
from models.data import clinc150, imagenette
from models.evaluation import evaluate
from models.preprocessing import ImagePreprocessing, TextPreprocessing, decode_image, encode_text, pad_tokens
from service.engine.inputs import Item
from service.engine.model import ServedModel
from service.engine.outcomes import Outcome
from service.settings import Settings
from tests.conftest import SHIPPED, running_server
from tests.networks import network_of, recorded_sides
from tests.oracle import assert_layers, assert_statistics_close

_SENTENCES = ["how much money is left on my account", "is it going to rain in boston tomorrow afternoon or not", "hi"]
_ARCHIVES = {"resnet50": "NORMSCOPE_IMAGENETTE", "encoder": "NORMSCOPE_CLINC150"}


def archive_of(name: str) -> Path:
    """The local archive of a model's data; skips the test where none is named."""
    variable = _ARCHIVES[name]
    if variable not in os.environ:
        pytest.skip(f"{variable} names no archive")
    return Path(os.environ[variable])


@pytest.fixture(scope="module")
def shipped() -> Iterator[httpx.Client]:
    """A server of the shipped models."""
    with running_server(Settings(model_repository=SHIPPED)) as client:
        yield client


def assert_layers_agree(layers: list[dict[str, Any]], network: nn.Module, *inputs: torch.Tensor) -> None:
    """Every side of every layer is that of the activations that torch computes."""
    with torch.no_grad(), recorded_sides(network) as recorded:
        network(*inputs)
    assert_layers(layers, recorded)


def assert_photo_agrees(client: httpx.Client, data: bytes) -> None:
    """All layers of the shipped ResNet-50 for one encoded photo."""
    artifact = load_artifact(SHIPPED / "resnet50" / "1")
    assert isinstance(artifact.manifest.preprocessing, ImagePreprocessing)
    answer = client.post("/v1/models/resnet50/predict?statistics=summary", content=data, headers={"Content-Type": "image/jpeg"})
    pixels = artifact.manifest.preprocessing.apply(decode_image(data))
    assert_layers_agree(answer.json()["predictions"][0]["layers"], network_of(artifact), torch.from_numpy(pixels)[None])


def test_resnet50_has_53_norms_and_16_adds() -> None:
    """The artifact verifies, fits in 50 MB and shows every norm and add of ResNet-50."""
    artifact = load_artifact(SHIPPED / "resnet50" / "1")
    kinds = [layer.kind for layer in artifact.manifest.layers]
    assert (kinds.count("batch_norm"), kinds.count("residual_add"), len(kinds)) == (53, 16, 69)
    assert artifact.model_path.stat().st_size <= 50e6
    assert artifact.manifest.labels == list(imagenette.CLASSES.values())


def test_encoder_has_a_norm_after_every_add() -> None:
    """Each sub-layer of the encoder is one Add & Norm: the sum of the add is what the norm takes."""
    layers = {layer.layer: layer for layer in load_artifact(SHIPPED / "encoder" / "1").manifest.layers}
    adds = [layer for layer in layers.values() if layer.kind == "residual_add"]
    assert len(layers) == 1 + 2 * len(adds)
    for add in adds:
        norm = layers[add.layer.removesuffix(".add")]
        assert norm.kind == "layer_norm"
        assert norm.tensors["before"] == add.tensors["sum"]


def test_statistics_of_a_photo(shipped: httpx.Client) -> None:
    """All 53 norms and 16 adds agree with hooked torch on a picture of smooth colours."""
    assert_photo_agrees(shipped, _photo(3))


def test_statistics_of_sentences(shipped: httpx.Client) -> None:
    """Every LayerNorm and add agrees with torch on the real tokens, for texts of different length in one request."""
    artifact = load_artifact(SHIPPED / "encoder" / "1")
    assert isinstance(artifact.manifest.preprocessing, TextPreprocessing)
    tokenizer, network = artifact.manifest.preprocessing.load_tokenizer(artifact.folder), network_of(artifact)
    answer = shipped.post("/v1/models/encoder/predict?statistics=summary", json={"inputs": _SENTENCES}).json()
    for text, prediction in zip(_SENTENCES, answer["predictions"], strict=True):
        ids, mask = pad_tokens([encode_text(tokenizer, text, artifact.manifest.preprocessing.max_length)[0]])
        assert_layers_agree(prediction["layers"], network, torch.from_numpy(ids), torch.from_numpy(mask))


def test_sentences_are_understood(shipped: httpx.Client) -> None:
    """The shipped encoder is trained: it knows what is asked."""
    answer = shipped.post("/v1/models/encoder/predict?top_k=1", json={"inputs": _SENTENCES[:2]}).json()
    assert [prediction["labels"][0]["label"] for prediction in answer["predictions"]] == ["balance", "weather"]


def _photo(seed: int) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((300, 200), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


@contextmanager
def _served(name: str, batch: int) -> Iterator[ServedModel]:
    """A shipped model that runs exactly so many inputs together: it waits for them, practically for ever."""
    settings = Settings(max_batch_size=batch, max_queue_delay_ms=3_600_000, max_batch_elements=10**7, statistics_sample=1)
    served = ServedModel(load_artifact(SHIPPED / name / "1"), settings, threads=1)
    try:
        yield served
    finally:
        served.close()


_WORDS = "and what is the exchange rate between the dollar and the yen on the last day of this month "
_BATCHES: dict[str, list[list[str]] | list[list[bytes]]] = {
    # the first of each batch is what is compared: the same input beside others, padded to other lengths
    "encoder": [
        [_SENTENCES[2], *others] for others in ([_SENTENCES[0], "no"], [_SENTENCES[1], _SENTENCES[2]], [_WORDS, _WORDS * 9])
    ],
    "resnet50": [[_photo(0), _photo(1), _photo(2)], [_photo(0), _photo(3), _photo(0)]],
}


@pytest.mark.parametrize("name", list(_BATCHES))
def test_an_answer_does_not_depend_on_its_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, beside others, and padded to any length: scores within 1e-5, statistics within the stated tolerances."""
    monkeypatch.setattr(service.engine.inputs, "_MOST_PADDING", 1)

    async def predict(served: ServedModel, inputs: Sequence[Item]) -> Outcome:
        return (await served.predict(inputs, statistics=True))[0][0]

    batches = _BATCHES[name]
    with _served(name, 1) as served:
        alone = asyncio.run(predict(served, batches[0][:1]))
        layers = served.manifest.layers
    with _served(name, len(batches[0])) as served:
        together = [asyncio.run(predict(served, batch)) for batch in batches]
        assert set(served.counters.snapshot().batches) == {len(batches[0])}
    assert alone.statistics is not None
    reference = alone.statistics.describe(layers, channels=False)
    for outcome in together:
        assert alone.scores is not None
        assert outcome.scores is not None
        np.testing.assert_allclose(outcome.scores, alone.scores, rtol=0, atol=1e-5)
        assert outcome.statistics is not None
        assert_statistics_close(outcome.statistics.describe(layers, channels=False), reference)


def test_a_strange_text_has_a_small_p_value(shipped: httpx.Client) -> None:
    """Two queries of the model's kind are ordinary, words without sense are not; the layers of both are named."""
    texts = [*_SENTENCES[:2], "qwrt zxcv bnm", "the the the the the the"]
    answer = shipped.post("/v1/models/encoder/predict?anomaly=true", json={"inputs": texts}).json()
    found = [prediction["anomaly"] for prediction in answer["predictions"]]
    assert [each["p_value"] > 0.05 for each in found] == [True, True, False, False]
    assert all(each["layers"] for each in found)


def test_photos_that_are_not_scaled_have_the_smallest_p_value(shipped: httpx.Client, tmp_path: Path) -> None:
    """Photos of the evaluation data are ordinary; the same as 0..255, neither scaled nor normalized, are not."""
    photos = [data for data, _ in imagenette.read_split("val", archive_of("resnet50"))[::400]]
    headers = {"Content-Type": "image/jpeg"}

    def p_values(client: httpx.Client) -> list[float]:
        answers = [client.post("/v1/models/resnet50/predict?anomaly=true", content=photo, headers=headers) for photo in photos]
        return [answer.json()["predictions"][0]["anomaly"]["p_value"] for answer in answers]

    assert np.mean(p_values(shipped)) > 0.2
    shutil.copytree(SHIPPED / "resnet50" / "1", tmp_path / "resnet50" / "1")
    artifact = load_artifact(tmp_path / "resnet50" / "1")
    assert isinstance(artifact.manifest.preprocessing, ImagePreprocessing)
    raw = artifact.manifest.preprocessing.model_copy(update={"mean": (0.0,) * 3, "std": (1 / 255,) * 3})
    write_manifest(artifact.folder, artifact.manifest.model_copy(update={"preprocessing": raw}), list(artifact.manifest.files))
    with running_server(Settings(model_repository=tmp_path)) as client:
        assert p_values(client) == pytest.approx([1 / (artifact.manifest.reference_samples + 1)] * len(photos))


@pytest.mark.parametrize("name", list(_ARCHIVES))
def test_metrics_of_the_manifest(name: str) -> None:
    """Measured again on the evaluation data, the metrics are those that the manifest states."""
    archive = archive_of(name)
    artifact = load_artifact(SHIPPED / name / "1")
    assert evaluate(artifact, archive) == pytest.approx(artifact.manifest.metrics, abs=2e-3)


def test_statistics_of_real_photos(shipped: httpx.Client) -> None:
    """All layers agree with torch on photos of the evaluation data."""
    for data, _ in imagenette.read_split("val", archive_of("resnet50"))[::700]:
        assert_photo_agrees(shipped, data)


def test_selection_data_is_not_trained_on() -> None:
    """What is trained on and what choices were made on are disjoint, and of the sizes that the manifest states."""
    archive = archive_of("encoder")
    training = load_artifact(SHIPPED / "encoder" / "1").manifest.training
    train, selection = (clinc150.load_queries(split, archive) for split in ("train", "val"))
    assert (len(train.texts), len(selection.texts)) == (training.samples, training.selection_samples)
