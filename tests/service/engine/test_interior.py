"""Changes of the shipped models and of the small ones, tensor by tensor: what torch's functions make of the same activations."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.artifact import Artifact, Layer, load_artifact
from models.instrument.renormalize import Renormalization
from models.statistics.normalized import normalize
from service.engine.changes import ChannelMoments, Normalization, NormalizationChange, renormalization
from service.engine.inputs import InputReader, TensorInput
from service.engine.interior import Interior
from service.engine.opened import OpenedSession
from service.engine.session import Feed
from service.errors import NoReferenceError, NotOfferedError
from service.settings import Settings
from tests.conftest import SHIPPED, SmallRepository
from tests.networks import SENTENCES
from tests.oracle import assert_side

_GROUPS = 32
_CHOSEN = {
    "resnet50": ["bn1", "layer2.0.bn3", "layer4.2.bn2"],
    "encoder": ["embedding_norm", "blocks.1.attention_norm", "blocks.2.feed_forward_norm"],
}


def _feed(name: str) -> Feed:
    rng = np.random.default_rng(3)
    if name == "resnet50":
        return {"image": rng.normal(size=(1, 3, 128, 128)).astype(np.float32)}
    return {"input_ids": rng.integers(5, 1000, (1, 12)), "attention_mask": np.ones((1, 12), np.int64)}


def _moments(layer: Layer) -> ChannelMoments:
    assert layer.shape is not None
    channels = layer.shape[layer.channel_axis]
    assert isinstance(channels, int)
    rng = np.random.default_rng(channels)
    return ChannelMoments(rng.normal(size=channels), rng.uniform(0.5, 2, channels))


def _torch(wanted: Normalization, x: Tensor, layer: Layer) -> Tensor:
    """The formula without gamma and beta, by torch's own function."""
    epsilon, axis = layer.epsilon, layer.channel_axis
    assert epsilon is not None
    first = x.movedim(axis, 1)  # the layout that torch takes
    if wanted == "none":
        return x
    if wanted == "layer":
        return F.layer_norm(x, x.shape[1:] if axis == 1 else x.shape[-1:], eps=epsilon)
    if wanted == "group":
        return F.group_norm(first, _GROUPS, eps=epsilon).movedim(1, axis)
    moments = _moments(layer)
    mean, var = torch.from_numpy(moments.mean).float(), torch.from_numpy(moments.var).float()
    return F.batch_norm(first, mean, var, eps=epsilon).movedim(1, axis)


def _affine(values: NDArray[np.floating], layer: Layer) -> NDArray[np.floating]:
    assert layer.shape is not None
    return values.reshape(-1, *[1] * (len(layer.shape) - 1 - layer.channel_axis))


def _artifact(name: str) -> Artifact:
    return load_artifact(SHIPPED / name / "1")


@pytest.mark.parametrize("wanted", ["batch", "layer", "group", "none"])
@pytest.mark.parametrize("name", _CHOSEN)
def test_every_formula_at_layers_of_the_shipped_models(name: str, wanted: Normalization) -> None:
    """Several layers at once: the after side of each is torch's function of its before side, within 1e-4 of the largest value."""
    artifact = _artifact(name)
    original = OpenedSession(artifact, "cpu")
    layers = [original.layers[layer] for layer in _CHOSEN[name]]
    wanted_at: dict[str, Renormalization] = {
        layer.layer: renormalization(layer, original.places[layer.layer].formula, wanted, _GROUPS, _moments(layer))
        for layer in layers
    }
    run = OpenedSession(artifact, "cpu", wanted_at).run(_feed(name), _CHOSEN[name])
    for layer in layers:
        before, after = (run.tensors[layer.tensors[side]] for side in ("before", "after"))
        parameters = original.places[layer.layer].parameters
        gamma, beta = (_affine(parameters[which].value, layer) for which in ("gamma", "beta"))
        expected = _torch(wanted, torch.from_numpy(before), layer).numpy() * gamma + beta
        np.testing.assert_allclose(after, expected, atol=1e-4 * max(1, np.abs(expected).max()), err_msg=layer.layer)


@pytest.mark.parametrize("name", _CHOSEN)
def test_the_normalized_value_of_every_layer_of_the_shipped_models(name: str) -> None:
    """Computed from the before side, it is (after - beta) / gamma wherever gamma is not near 0."""
    session = OpenedSession(_artifact(name), "cpu")
    norms = [layer for layer in session.layers.values() if layer.kind != "residual_add"]
    run = session.run(_feed(name), [layer.layer for layer in norms])
    for layer in norms:
        place = session.places[layer.layer]
        assert place.formula is not None
        gamma, beta = (_affine(place.parameters[which].value, layer) for which in ("gamma", "beta"))
        before, after = (run.tensors[layer.tensors[side]] for side in ("before", "after"))
        scaled = normalize(before, place.formula) * gamma
        s = np.sqrt(np.square(after).mean())
        np.testing.assert_allclose(scaled, after - beta, atol=1e-4 * max(s, np.abs(after).max()), err_msg=layer.layer)


@pytest.mark.parametrize("name", ["resnet50", "encoder"])
def test_an_opened_graph_computes_what_the_model_does(name: str) -> None:
    """Without changes the logits are those of the model's own graph."""
    artifact = _artifact(name)
    feed = _feed(name)
    (expected,) = onnxruntime.InferenceSession(artifact.model_path).run(None, dict(feed))
    np.testing.assert_allclose(OpenedSession(artifact, "cpu").run(feed, []).outputs[0], expected, atol=1e-4)


def test_batch_takes_the_moments_of_the_reference(small_repository: SmallRepository) -> None:
    """A LayerNorm as batch normalization with mean and variance of the reference; without them for a layer it is an error."""
    artifact = load_artifact(small_repository.folder / "text" / "1")
    settings = Settings(model_repository=small_repository.folder)
    layers = [layer for layer in artifact.manifest.layers if layer.kind == "layer_norm"]
    moments = {layers[0].layer: _moments(layers[0])}
    interior = Interior(artifact, InputReader(artifact, 1000), settings, moments)
    change = NormalizationChange((layers[0],), "batch")
    (comparison,) = asyncio.run(interior.what_if([SENTENCES[0]], [change], layers[:1], 60))
    plain = OpenedSession(artifact, "cpu")
    feed = InputReader(artifact, 1000).feed([_row(artifact)])
    before = plain.run(feed, [layers[0].layer]).tensors[layers[0].tensors["before"]]
    parameters = plain.places[layers[0].layer].parameters
    expected = _torch("batch", torch.from_numpy(before), layers[0]).numpy() * parameters["gamma"].value + parameters["beta"].value
    (described,) = comparison.changed.layers
    assert_side(described["after"], expected, "after")
    with pytest.raises(NoReferenceError):
        asyncio.run(interior.what_if([SENTENCES[0]], [NormalizationChange((layers[1],), "batch")], [], 60))
    interior.close()


def _row(artifact: Artifact) -> TensorInput:
    (row,) = InputReader(artifact, 1000).texts([SENTENCES[0]])
    assert isinstance(row, TensorInput)
    return row


@pytest.mark.parametrize("damage", ["missing", "broken", "empty"])
def test_a_graph_that_cannot_be_opened_is_told_without_names_of_files(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that vanished or broke after it was served: the client learns the kind of the fault, the log all of it."""
    folder = shutil.copytree(SHIPPED / "encoder" / "1", tmp_path / "encoder" / "1")
    artifact = load_artifact(folder)
    if damage == "missing":
        artifact.model_path.unlink()
    else:
        artifact.model_path.write_bytes(b"" if damage == "empty" else b"no graph at all")
    with pytest.raises(NotOfferedError, match="the inside of encoder cannot be opened") as caught:
        OpenedSession(artifact, "cpu")
    assert str(tmp_path) not in str(caught.value)
    assert artifact.model_path.name not in str(caught.value)
    assert str(folder) in caplog.text
    assert "Traceback" in caplog.text
