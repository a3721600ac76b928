"""A finished run becomes an artifact whole or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.architectures.resnet import ResNet, ResNetConfig
from models.artifact import load_artifact
from models.data import imagenette
from models.package import package_recipe
from models.recipes import RECIPES
from tests.photos import write_archive


def _network(classes: int, _: int) -> ResNet:
    torch.manual_seed(0)
    return ResNet(ResNetConfig(depths=(1, 1, 1, 1), widths=(8, 8, 8, 8), classes=classes))


def test_an_export_that_fails_leaves_the_artifact_as_it_was(tmp_path: Path) -> None:
    """A second run takes the place of the first; one whose evaluation fails changes no file and leaves none."""
    archive = write_archive(tmp_path / "imagenette.tar", {"train": 120, "val": 2}, 32)
    material = RECIPES["resnet50"].material(archive, None)
    recipe = replace(RECIPES["resnet50"], network=_network, material=lambda *_: material, parity_shapes=[(2, 64), (1, 32)])
    folder, run = tmp_path / "repository" / "photos" / "1", tmp_path / "run"
    run.mkdir()
    network = _network(len(imagenette.CLASSES), 0)
    torch.save(network.state_dict(), run / "weights.pt")
    with pytest.raises(OSError, match="nothing"):
        package_recipe(recipe, run, tmp_path / "nothing.tar", folder)
    assert not (tmp_path / "repository").exists()
    package_recipe(recipe, run, archive, folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert (load_artifact(folder).manifest.name, load_artifact(folder).manifest.version) == ("photos", "1")
    with torch.no_grad():
        network.fc.bias.add_(1)
    torch.save(network.state_dict(), run / "weights.pt")
    with pytest.raises(OSError, match="nothing"):
        package_recipe(recipe, run, tmp_path / "nothing.tar", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    package_recipe(recipe, run, archive, folder)
    assert load_artifact(folder).manifest.files["model.onnx"] not in str(first["manifest.json"])
    assert [path.name for path in folder.parent.iterdir()] == ["1"]
