"""Models from outside are imported and served: Triton's client gets torch's outputs, and the statistics of torch's layers."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

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
    return folder / "repository"


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
