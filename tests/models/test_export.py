"""Export: the graph is the network, its norms survive, its names are module paths, and nothing of the exporting machine stays."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn

from models.architectures.resnet import ResNet, ResNetConfig, resnet_config
from models.architectures.transformer import TransformerClassifier, TransformerConfig
from models.artifact import ArtifactError, load_artifact
from models.export import (
    IMAGE_SIGNATURE,
    TEXT_SIGNATURE,
    ExportError,
    export_onnx,
    largest_difference,
    load_weights,
    round_to_half,
)
from models.instrument.observers import Reduction
from models.instrument.probes import find_probes
from models.preprocessing import ImagePreprocessing
from models.torchvision_import import CHECKPOINTS, CheckpointError, import_torchvision
from service.engine.graph import prepare
from tests.conftest import SmallRepository
from tests.networks import small_encoder, small_resnet


def _model(repository: SmallRepository, name: str) -> onnx.ModelProto:
    return onnx.load(repository.folder / name / "1" / "model.onnx")


def test_probes_are_named_by_module_path(small_repository: SmallRepository) -> None:
    """Every norm of the network is a probe under its module path; every block has its add."""
    for name, network in (("vision", small_repository.resnet), ("text", small_repository.encoder)):
        norms = {path for path, module in network.named_modules() if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm))}
        probes = find_probes(_model(small_repository, name))
        assert {probe.layer for probe in probes if probe.kind != "residual_add"} == norms
        assert len({probe.layer for probe in probes}) == len(probes)
    adds = [probe.layer for probe in find_probes(_model(small_repository, "vision")) if probe.kind == "residual_add"]
    assert adds == [f"{block}.add" for block in ("layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0")]


def test_no_path_of_this_machine_stays(small_repository: SmallRepository) -> None:
    """The files name no source file, no folder and no user of the machine that exported."""
    for name in ("vision", "text"):
        content = (small_repository.folder / name / "1" / "model.onnx").read_bytes()
        for trace in (b".py", b"site-packages", str(Path.home()).encode(), b"stack_trace", b"File "):
            assert trace not in content


def test_any_batch_size_and_length(small_repository: SmallRepository) -> None:
    """Batch, image size and length are dynamic, also beyond what was exported with."""
    vision, text = (_model(small_repository, name).SerializeToString() for name in ("vision", "text"))
    images = [(torch.randn(n, 3, h, w),) for n, h, w in ((1, 32, 32), (5, 96, 64), (3, 33, 57))]
    assert largest_difference(small_repository.resnet, vision, images) <= 1e-4
    texts = []
    for n, length in ((1, 1), (5, 24), (2, 3)):
        mask = torch.ones(n, length, dtype=torch.int64)
        mask[0, 1:] = 0
        texts.append((torch.randint(0, 40, (n, length)), mask))
    assert largest_difference(small_repository.encoder, text, texts) <= 1e-4


def test_large_weights_are_float16_and_vectors_are_not(small_repository: SmallRepository) -> None:
    """Kernels are stored in half the space and cast in the graph; gamma, beta and running moments keep float32."""
    types = {tensor.name: tensor.data_type for tensor in _model(small_repository, "vision").graph.initializer}
    assert types["conv1.weight.float16"] == TensorProto.FLOAT16
    assert types["bn1.running_var"] == TensorProto.FLOAT


def test_unrounded_weights_are_refused() -> None:
    """Storing float16 of weights that torch computes with in float32 would change the answers: an error says what to call."""
    with pytest.raises(ExportError, match="round_to_half"):
        export_onnx(small_resnet(), (torch.randn(2, 3, 64, 64),), IMAGE_SIGNATURE, half=True)


def test_weights_can_be_read_back(small_repository: SmallRepository) -> None:
    """The exported file restores every weight of the network bit by bit."""
    for name, network, fresh in (
        ("vision", small_repository.resnet, ResNet(small_repository.resnet.config)),
        ("text", small_repository.encoder, TransformerClassifier(small_repository.encoder.config)),
    ):
        load_weights(fresh, small_repository.folder / name / "1" / "model.onnx")
        for key, value in network.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                assert torch.equal(value, fresh.state_dict()[key]), key
    with pytest.raises(ExportError, match="no weight"):
        load_weights(nn.Linear(2, 2), small_repository.folder / "text" / "1" / "model.onnx")


def test_a_wrong_export_is_noticed(small_repository: SmallRepository) -> None:
    """Other weights than the network's fail the comparison with torch."""
    torch.manual_seed(5)
    other = ResNet(small_repository.resnet.config).eval()
    nn.init.normal_(other.fc.weight)
    with pytest.raises(ExportError, match="differ"):
        largest_difference(other, _model(small_repository, "vision").SerializeToString(), [(torch.randn(1, 3, 64, 64),)])


@pytest.mark.parametrize("normalization", ["group", "layer"])
def test_other_normalizations_are_exported_and_found(normalization: str) -> None:
    """A ResNet with group or layer normalization keeps one probe for each norm of the network."""
    config = ResNetConfig(
        block="basic",
        depths=(1, 1),
        widths=(8, 16),
        stem="cifar",
        classes=3,
        normalization="group" if normalization == "group" else "layer",
    )
    network = ResNet(config).eval()
    probes = find_probes(export_onnx(network, (torch.randn(2, 3, 32, 32),), IMAGE_SIGNATURE))
    assert sum(probe.kind != "residual_add" for probe in probes) == sum(isinstance(m, nn.GroupNorm) for m in network.modules())


def test_pre_norm_encoder() -> None:
    """With norm_first every add joins the running sum and a branch, and the last norm is a probe too."""
    torch.manual_seed(3)
    network = TransformerClassifier(TransformerConfig(40, 3, layers=2, width=16, heads=2, feed_forward=32, norm_first=True)).eval()
    ids = torch.randint(0, 40, (2, 5))
    probes = find_probes(export_onnx(network, (ids, torch.ones_like(ids)), TEXT_SIGNATURE))
    assert [probe.kind for probe in probes].count("residual_add") == 4
    assert [probe.kind for probe in probes].count("layer_norm") == 1 + 4 + 1
    adds = [probe for probe in probes if probe.kind == "residual_add"]
    for before, after in itertools.pairwise(adds):
        assert after.tensors["identity"] == before.tensors["sum"]


def test_official_checkpoint(tmp_path: Path) -> None:
    """A checkpoint under an official name becomes an artifact of 1000 classes with that checkpoint's preprocessing."""
    torch.manual_seed(0)
    network = ResNet(resnet_config(50, classes=1000))
    with torch.no_grad():
        network.fc.weight /= 30  # logits of the size that trained weights give
    torch.save(network.state_dict(), tmp_path / "resnet50-11ad3fa6.pth")
    folder = tmp_path / "imagenet" / "1"
    artifact = import_torchvision(tmp_path / "resnet50-11ad3fa6.pth", folder)
    manifest = load_artifact(folder).manifest
    assert isinstance(manifest.preprocessing, ImagePreprocessing)
    assert (manifest.preprocessing.resize, manifest.preprocessing.crop) == (232, 224)
    assert CHECKPOINTS["0676ba61"].resize == 256
    assert len(manifest.labels) == len(set(manifest.labels)) == 1000
    assert (manifest.labels[0], manifest.labels[217], manifest.labels[701]) == ("tench", "English springer", "parachute")
    kinds = [layer.kind for layer in manifest.layers]
    assert (kinds.count("batch_norm"), kinds.count("residual_add")) == (53, 16)
    assert artifact.model_path.stat().st_size < 60e6
    with pytest.raises(CheckpointError, match="exists already; choose another --version, or remove it"):
        import_torchvision(tmp_path / "resnet50-11ad3fa6.pth", folder)


def test_unknown_checkpoints_are_refused(tmp_path: Path) -> None:
    """A file of another name needs --resize; a file of other weights is named."""
    (tmp_path / "weights.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="--resize"):
        import_torchvision(tmp_path / "weights.pth", tmp_path / "m" / "1")
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        import_torchvision(tmp_path / "weights.pth", tmp_path / "m" / "1", resize=256)


def test_a_graph_that_cannot_be_loaded_is_named(small_repository: SmallRepository) -> None:
    """A tap that does not exist is an error that names the artifact and the tensor."""
    artifact = load_artifact(small_repository.folder / "text" / "1")
    with pytest.raises(ArtifactError, match="nowhere"):
        prepare(artifact, "cpu", [Reduction("nowhere", 1, None)])


def test_float16_rounding_is_idempotent() -> None:
    """Rounding twice changes nothing, and vectors are never rounded."""
    network = small_resnet()
    vectors = network.bn1.get_parameter("weight").clone()
    round_to_half(network)
    once = network.conv1.weight.clone()
    round_to_half(network)
    assert torch.equal(once, network.conv1.weight)
    assert torch.equal(vectors, network.bn1.get_parameter("weight"))


def test_onnx_runtime_runs_the_text_model_alone(small_repository: SmallRepository) -> None:
    """The file needs nothing of this project to run."""
    session = onnxruntime.InferenceSession(_model(small_repository, "text").SerializeToString())
    ids = np.ones((1, 4), np.int64)
    (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": ids})
    assert logits.shape == (1, 3)
    assert small_encoder(50).config.classes == 3
