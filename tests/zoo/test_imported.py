"""Models from outside are imported and served: Triton's client gets torch's outputs, and the statistics of torch's layers."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

import torch
import transformers
from torch import Tensor, nn
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import np_to_triton_dtype

from models.artifact import load_artifact
from models.graph_import import ImportOptions, import_graph
from service.settings import Settings
from tests.conftest import running_server
from tests.zoo.exports import Recording, export
from tests.zoo.families import FAMILIES, OneOutput, build, example

_NAMES = ("bert", "vit", "t5")


@pytest.fixture(scope="module")
def networks() -> dict[str, OneOutput]:
    """With random weights."""
    return {name: build(name) for name in _NAMES}


@pytest.fixture(scope="module")
def repository(networks: dict[str, OneOutput], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `import` makes of their exports."""
    folder = tmp_path_factory.mktemp("zoo")
    for name, network in networks.items():
        path = folder / f"{name}.onnx"
        export(network, name, "dynamo", 20, path)
        import_graph(path, folder / "repository" / name / "1", ImportOptions())
    import_graph(_fused(folder / "bert.onnx"), folder / "repository" / "bert-fused" / "1", ImportOptions())
    return folder / "repository"


def _fused(path: Path) -> Path:
    """The same model as ONNX Runtime saves it, with operators of its own."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path.with_stem("fused"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return path.with_stem("fused")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[httpx.Client]:
    """Serves them."""
    with running_server(Settings(model_repository=repository)) as opened:
        yield opened


@pytest.mark.parametrize("name", _NAMES)
def test_outputs_and_statistics(name: str, networks: dict[str, OneOutput], repository: Path, server: httpx.Client) -> None:
    """A batch with a padded text: outputs are torch's, and so is the mean of every normalization, padding left out."""
    recording, inputs = Recording(networks[name]), example(name, batch=3, length=9)
    expected = recording.run(*inputs)
    given = []
    for key, tensor in zip(FAMILIES[name].axes, inputs, strict=True):
        value = tensor.numpy()
        given.append(InferInput(key, list(value.shape), np_to_triton_dtype(value.dtype)))
        given[-1].set_data_from_numpy(value)
    with InferenceServerClient(f"{server.base_url.host}:{server.base_url.port}") as triton:
        answer = triton.infer(name, given, parameters={"layer_statistics": "summary"})
    np.testing.assert_allclose(answer.as_numpy("output"), expected.numpy(), atol=1e-4)
    manifest = load_artifact(repository / name / "1").manifest
    norms = [layer for layer in manifest.layers if layer.kind != "residual_add"]
    assert len(norms) == len(recording.norms)
    assert len(manifest.layers) - len(norms) == FAMILIES[name].adds
    for side in ("before", "after"):
        means, counts = (answer.as_numpy(f"statistics.{side}.{statistic}") for statistic in ("mean", "count"))
        for row, layer in enumerate(norms):
            torch_side = recording.norms[layer.layer][side == "after"].numpy()
            assert (layer.mask is None) == (name == "vit")
            for i in range(3):
                kept = torch_side[i] if layer.mask is None else torch_side[i][inputs[1][i].numpy() == 1]
                assert counts[i, row] == kept.size
                assert means[i, row] == pytest.approx(kept.mean(), abs=1e-4 * float(np.sqrt((kept**2).mean())))


def test_fused_operators(repository: Path, server: httpx.Client) -> None:
    """Behind ONNX Runtime's optimizer the layers are the same, four of the norms and all adds inside SkipLayerNormalization."""
    nodes = [node.op_type for node in onnx.load(repository / "bert-fused" / "1" / "model.onnx").graph.node]
    assert nodes.count("SkipLayerNormalization") == 4
    given = []
    for key, tensor in zip(FAMILIES["bert"].axes, example("bert", batch=3, length=9), strict=True):
        given.append(InferInput(key, [3, 9], "INT64"))
        given[-1].set_data_from_numpy(tensor.numpy())
    with InferenceServerClient(f"{server.base_url.host}:{server.base_url.port}") as triton:
        plain, fused = (triton.infer(name, given, parameters={"layer_statistics": "summary"}) for name in ("bert", "bert-fused"))
    for output in plain.get_response()["outputs"]:
        name = output["name"]
        np.testing.assert_allclose(fused.as_numpy(name), plain.as_numpy(name), atol=1e-3, rtol=1e-3, err_msg=name)


class _Detector(nn.Module):
    """A tiny YOLOS: of each of its queries the scores of the classes and a box."""

    def __init__(self) -> None:
        super().__init__()
        config = getattr(transformers, "YolosConfig")(  # noqa: B009  # its fields have no types
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[32, 48], patch_size=8,
            num_detection_tokens=5, num_labels=3,
        )  # fmt: skip
        self.network: nn.Module = transformers.YolosForObjectDetection(config)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, 32, 48) -> (batch, 5, 4) and (batch, 5, 4)."""
        found = self.network(pixels)
        return found.logits, found.pred_boxes


def test_a_detector(tmp_path: Path) -> None:
    """Two outputs, each of one row for every query; both, and the statistics of both photos, come with one request."""
    torch.manual_seed(0)
    network = _Detector().eval()
    pixels = torch.randn(2, 3, 32, 48)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (pixels,), str(tmp_path / "yolos.onnx"), dynamo=False, opset_version=17, input_names=["pixels"],
            output_names=["logits", "boxes"], dynamic_axes={name: {0: "batch"} for name in ("pixels", "logits", "boxes")},
        )  # fmt: skip
        logits, boxes = network(pixels)
    manifest = import_graph(tmp_path / "yolos.onnx", tmp_path / "repository" / "yolos" / "1", ImportOptions()).manifest
    kinds = [layer.kind for layer in manifest.layers]
    assert (manifest.batched, kinds.count("layer_norm"), kinds.count("residual_add")) == (True, 5, 4)
    given = InferInput("pixels", [2, 3, 32, 48], "FP32")
    given.set_data_from_numpy(pixels.numpy())
    with (
        running_server(Settings(model_repository=tmp_path / "repository")) as opened,
        InferenceServerClient(f"{opened.base_url.host}:{opened.base_url.port}") as triton,
    ):
        answer = triton.infer("yolos", [given], parameters={"layer_statistics": "summary"})
    np.testing.assert_allclose(answer.as_numpy("logits"), logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(answer.as_numpy("boxes"), boxes.numpy(), atol=1e-4)
    ratios = answer.as_numpy("statistics.add.residual_ratio")
    assert ratios.shape == (2, 4)
    assert np.isfinite(ratios).all()
