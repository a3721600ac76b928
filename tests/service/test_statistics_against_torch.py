"""The statistics that the service returns are those of the activations that torch computes with the same weights."""

import io

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from models.artifact import load_artifact
from models.preprocessing import ImagePreprocessing, TextPreprocessing, decode_image, encode_text, pad_tokens
from tests.conftest import SmallRepository
from tests.networks import SENTENCES, recorded_sides
from tests.oracle import assert_layers


def photo(seed: int, size: tuple[int, int] = (90, 70)) -> bytes:
    """A PNG of smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_layer_of_the_image_model(client: httpx.Client, small_repository: SmallRepository) -> None:
    """All BatchNorms and residual adds agree with hooked torch, for each photo of a request, within the stated tolerances."""
    photos = [photo(1), photo(2, (64, 64)), photo(3, (50, 120))]
    answer = client.post(
        "/v1/models/vision/predict?statistics=summary", files=[("image", (f"{i}.png", data)) for i, data in enumerate(photos)]
    ).json()
    preprocessing = load_artifact(small_repository.folder / "vision" / "1").manifest.preprocessing
    assert isinstance(preprocessing, ImagePreprocessing)
    for data, prediction in zip(photos, answer["predictions"], strict=True):
        x = torch.from_numpy(preprocessing.apply(decode_image(data)))[None]
        with torch.no_grad(), recorded_sides(small_repository.resnet) as recorded:
            scores = small_repository.resnet(x).softmax(-1)[0]
        assert_layers(prediction["layers"], recorded)
        assert prediction["labels"][0]["score"] == pytest.approx(scores.max().item(), abs=1e-4)


def test_every_layer_of_the_text_model_without_its_padding(client: httpx.Client, small_repository: SmallRepository) -> None:
    """Texts of different length in one request: every LayerNorm and add agrees with torch on the real tokens alone."""
    artifact = load_artifact(small_repository.folder / "text" / "1")
    assert isinstance(artifact.manifest.preprocessing, TextPreprocessing)
    tokenizer = artifact.manifest.preprocessing.load_tokenizer(artifact.folder)
    texts = [SENTENCES[1], " ".join(SENTENCES), SENTENCES[0]]
    answer = client.post("/v1/models/text/predict?statistics=summary", json={"inputs": texts}).json()
    for text, prediction in zip(texts, answer["predictions"], strict=True):
        ids, mask = pad_tokens([encode_text(tokenizer, text, 24)[0]])
        with torch.no_grad(), recorded_sides(small_repository.encoder) as recorded:
            small_repository.encoder(torch.from_numpy(ids), torch.from_numpy(mask))
        assert_layers(prediction["layers"], recorded)


def test_channels_add_up_to_the_summary(client: httpx.Client, small_repository: SmallRepository) -> None:
    """`channels` has one number for each channel of the axis that /layers states, and agrees with torch channel by channel."""
    data = photo(4)
    answer = client.post(
        "/v1/models/vision/predict?statistics=channels&layers=layer1.0.*", content=data, headers={"Content-Type": "image/png"}
    ).json()
    preprocessing = load_artifact(small_repository.folder / "vision" / "1").manifest.preprocessing
    assert isinstance(preprocessing, ImagePreprocessing)
    with torch.no_grad(), recorded_sides(small_repository.resnet) as recorded:
        small_repository.resnet(torch.from_numpy(preprocessing.apply(decode_image(data)))[None])
    layers = answer["predictions"][0]["layers"]
    assert [layer["layer"] for layer in layers] == [
        "layer1.0.bn1",
        "layer1.0.bn2",
        "layer1.0.bn3",
        "layer1.0.downsample.1",
        "layer1.0.add",
    ]
    for layer in layers:
        for side, tensor in recorded[layer["layer"]].items():
            channels = layer[side]["channels"]
            x = tensor[0].double()
            s = x.square().mean().sqrt().item()
            np.testing.assert_allclose(channels["mean"], x.mean((1, 2)), atol=1e-4 * s)
            np.testing.assert_allclose(channels["std"], x.std((1, 2), correction=0), atol=1e-4 * s)
            np.testing.assert_allclose(channels["min"], x.amin((1, 2)), atol=1e-4 * s)
            np.testing.assert_allclose(channels["max"], x.amax((1, 2)), atol=1e-4 * s)
            np.testing.assert_allclose(channels["l2"], x.square().sum((1, 2)).sqrt(), rtol=1e-4, atol=1e-4 * s)
            np.testing.assert_allclose(channels["zeros"], (x == 0).double().mean((1, 2)), atol=1e-3)
            assert channels["nonfinite"] == [0] * x.shape[0]


def test_an_answer_does_not_depend_on_its_batch(client: httpx.Client) -> None:
    """A text alone and beside a longer one: scores within 1e-5, statistics within the tolerance."""
    alone = client.post("/v1/models/text/predict?statistics=summary", json={"inputs": SENTENCES[1]}).json()["predictions"][0]
    both = {"inputs": [" ".join(SENTENCES), SENTENCES[1]]}
    beside = client.post("/v1/models/text/predict?statistics=summary", json=both).json()["predictions"][1]
    for one, other in zip(alone["labels"], beside["labels"], strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    for one, other in zip(alone["layers"], beside["layers"], strict=True):
        for side in {"before", "after", "identity", "residual", "sum"} & set(one):
            assert one[side]["count"] == other[side]["count"]
            assert one[side]["mean"] == pytest.approx(other[side]["mean"], abs=1e-4)
            assert one[side]["l2"] == pytest.approx(other[side]["l2"], rel=1e-4)
