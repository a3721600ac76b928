"""Which blocks a model could do without: ratios and accuracies are those that numpy computes."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from models.__main__ import main
from models.ablation import ablate
from models.artifact import Artifact
from models.data import imagenette
from models.evaluation import evaluate
from models.preprocessing import ImagePreprocessing, decode_image
from tests import graphs
from tests.colours import import_colours
from tests.photos import write_archive

_SIDE = 8
_BLOCKS = ("large", "small", "zero")
_SCALES = {"large": 2.0, "small": 0.1, "zero": 0.0}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos of each class to evaluate on."""
    return write_archive(tmp_path_factory.mktemp("data") / "imagenette.tar", {"val": 4}, _SIDE)


def weight(name: str) -> NDArray[np.float32]:
    """Of a block, float32 (3, 3)."""
    return graphs.weights(3, 3, seed=_BLOCKS.index(name)) * np.float32(_SCALES[name])


def head() -> NDArray[np.float32]:
    """The classes' weights, float32 (3, 10)."""
    return graphs.weights(3, 10, seed=9)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """logits of the mean colour c (batch, 3) after c + c W of three blocks."""
    return import_colours(tmp_path_factory.mktemp("model"), _SIDE, {name: weight(name) for name in _BLOCKS}, head())


def by_numpy(archive: Path, removed: str | None) -> tuple[float, dict[str, float]]:
    """Accuracy without one of the blocks, and the mean ratio of each."""
    preprocessing = ImagePreprocessing(resize=_SIDE, crop=_SIDE)
    files = imagenette.read_split("val", archive)
    x = np.stack([preprocessing.apply(decode_image(data)).mean((1, 2)) for data, _ in files])
    ratios = {}
    for name in _BLOCKS:
        f = x @ weight(name)
        ratios[name] = float((np.linalg.norm(f, axis=1) / np.linalg.norm(x, axis=1)).mean())
        x = x if name == removed else x + f
    return float(((x @ head()).argmax(1) == [label for _, label in files]).mean()), ratios


def test_blocks_are_ranked_and_removed_one_by_one(artifact: Artifact, archive: Path) -> None:
    """The smallest ratio first; each accuracy is that of the model without that branch alone."""
    report = ablate(artifact, archive, None)
    accuracy, ratios = by_numpy(archive, None)
    assert report.samples == 40
    assert report.accuracy == pytest.approx(accuracy)
    assert [block.layer for block in report.blocks] == ["zero", "small", "large"]
    for block in report.blocks:
        assert block.residual_ratio == pytest.approx(ratios[block.layer], rel=1e-4)
        assert block.accuracy == pytest.approx(by_numpy(archive, block.layer)[0])
    assert report.blocks[0].accuracy == report.accuracy
    assert [block.surplus for block in report.blocks] == [block.accuracy >= accuracy for block in report.blocks]
    assert report.blocks[0].surplus
    assert not report.blocks[2].surplus
    assert len({block.accuracy for block in report.blocks}) > 1


@pytest.mark.parametrize(("kind", "batch"), [(onnx.TensorProto.FLOAT16, "batch"), (onnx.TensorProto.FLOAT, 1)])
def test_models_from_outside(kind: int, batch: str | int, archive: Path, tmp_path: Path) -> None:
    """Half precision, and a fixed batch of one, as exporters write it by default: the same blocks in the same order."""
    made = import_colours(tmp_path, _SIDE, {name: weight(name) for name in _BLOCKS}, head(), kind, batch)
    report = ablate(made, archive, None)
    accuracy, ratios = by_numpy(archive, None)
    assert report.accuracy == pytest.approx(accuracy, abs=0.05)
    assert evaluate(made, archive)["accuracy"] == report.accuracy
    assert [block.layer for block in report.blocks] == ["zero", "small", "large"]
    for block in report.blocks:
        assert block.residual_ratio == pytest.approx(ratios[block.layer], rel=1e-2)


def test_the_command(artifact: Artifact, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`inspect ARTIFACT --data` prints the table, or JSON; `--samples` takes fewer."""
    command = ["inspect", str(artifact.folder), "--data", str(archive)]
    main(command)
    lines = capsys.readouterr().out.splitlines()
    assert "on 40 samples" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["zero", "small", "large"]
    assert [line.split()[-1] for line in lines[1:3]] == ["surplus", "yes"]
    assert lines[4].split()[-1] != "yes"
    main([*command, "--json", "--samples", "7"])
    assert json.loads(capsys.readouterr().out)["samples"] == 7


def test_weights_in_a_file_of_their_own(artifact: Artifact, archive: Path, tmp_path: Path) -> None:
    """They are left there, so that a model may be larger than what protobuf can hold; the report is the same."""
    model = onnx.load(artifact.model_path)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert ablate(Artifact(tmp_path, artifact.manifest), archive, None) == ablate(artifact, archive, None)


def test_what_has_no_blocks_is_told(artifact: Artifact, archive: Path) -> None:
    """A model without residual adds has nothing to remove."""
    bare = Artifact(artifact.folder, artifact.manifest.model_copy(update={"layers": []}))
    with pytest.raises(ValueError, match="no residual add"):
        ablate(bare, archive, None)
