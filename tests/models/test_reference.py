"""The reference of a model: per-request values and channel moments are those that numpy computes."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models import reference as reference_module
from models.__main__ import main
from models.artifact import REFERENCE, Artifact, ArtifactError, Layer, load_artifact
from models.data import imagenette
from models.instrument.graph import Dimension
from models.preprocessing import ImagePreprocessing, decode_image
from models.reference import add_reference
from models.statistics.layers import SideLayout
from models.statistics.reference import Reference
from tests import graphs
from tests.colours import import_colours
from tests.models.statistics.test_layers import layer
from tests.photos import write_archive

_SIDE = 8
_WEIGHT = graphs.weights(3, 3, seed=1)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos of each class to train on, all of which are few enough to be kept for selection, and others to evaluate on."""
    return write_archive(tmp_path_factory.mktemp("data") / "imagenette.tar", {"train": 4, "val": 1}, _SIDE)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """logits of the mean colour c (batch, 3) after c + c W."""
    return import_colours(tmp_path, _SIDE, {"add": _WEIGHT}, graphs.weights(3, 10, seed=9))


def colours(archive: Path) -> NDArray[np.float32]:
    """c of every photo of the selection, (n, 3)."""
    preprocessing = ImagePreprocessing(resize=_SIDE, crop=_SIDE)
    files = imagenette.read_split("selection", archive)
    return np.stack([preprocessing.apply(decode_image(data)).mean((1, 2)) for data, _ in files])


def test_values_and_channels_are_those_of_the_selection(artifact: Artifact, archive: Path) -> None:
    """One row for each photo of the selection, and mean and variance of every channel over all of them, batches or not."""
    made = add_reference(artifact, archive, least=40)
    assert made.manifest.reference_samples == 40
    assert "the statistics of 40" in (artifact.folder / "README.md").read_text()
    layout = SideLayout(tuple(made.manifest.layers))
    reference = Reference.load(load_artifact(artifact.folder), layout)
    assert reference is not None
    x = colours(archive)
    f = x @ _WEIGHT
    sides = {"identity": x, "residual": f, "sum": x + f}
    expected = [sides[side] for _, side in layout.rows]
    columns = [
        *(value.mean(1) for value in expected),
        *(value.std(1) for value in expected),
        *(np.linalg.norm(value, axis=1) for value in expected),
        np.linalg.norm(f, axis=1) / np.linalg.norm(x, axis=1),
        (f * x).sum(1) / np.linalg.norm(f, axis=1) / np.linalg.norm(x, axis=1),
    ]
    np.testing.assert_allclose(reference.values, np.stack(columns, axis=1), rtol=1e-4, atol=1e-5)
    tensors = {layer.tensors[side]: sides[side] for layer, side in layout.rows}
    channels = np.concatenate([tensors[each.tensor] for each in layout.reductions], axis=1)
    np.testing.assert_allclose(reference.mean, channels.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reference.var, channels.var(0), rtol=1e-4, atol=1e-6)


def test_too_few_samples_are_refused(artifact: Artifact, archive: Path) -> None:
    """A reference of 40 samples would be more error than reference; the artifact stays as it was."""
    with pytest.raises(SystemExit, match="have 40 samples, a reference needs 1000"):
        main(["reference", str(artifact.folder), "--data", str(archive)])
    assert load_artifact(artifact.folder).manifest == artifact.manifest


def test_a_model_without_layers_has_no_reference(artifact: Artifact, archive: Path) -> None:
    """There is nothing to compare."""
    bare = Artifact(artifact.folder, artifact.manifest.model_copy(update={"layers": []}))
    with pytest.raises(ValueError, match="no layers"):
        add_reference(bare, archive)


def test_a_reference_of_other_layers_is_refused(artifact: Artifact, archive: Path) -> None:
    """Neither a file for other layers nor a broken one is taken for the reference; without one there is none."""
    layout = SideLayout(tuple(artifact.manifest.layers))
    assert Reference.load(artifact, layout) is None
    made = add_reference(artifact, archive, least=1)
    with pytest.raises(ArtifactError, match="make it again"):
        Reference.load(made, SideLayout(layout.layers * 2))
    (made.folder / REFERENCE).write_bytes(b"PK broken")
    with pytest.raises(ArtifactError, match="cannot be read; make it again"):
        Reference.load(made, layout)


def test_a_reference_holds_what_scores_need(artifact: Artifact, archive: Path) -> None:
    """The classes of the photos, and a score of each of them by a fit without it; no directions, the model has no normalization."""
    made = add_reference(artifact, archive, least=40)
    layout = SideLayout(tuple(made.manifest.layers))
    reference = Reference.load(made, layout)
    assert reference is not None
    assert reference.evidence is not None
    assert reference.evidence.labels.tolist() == [label for _, label in imagenette.read_split("selection", archive)]
    assert reference.evidence.held_out.shape == (40, 1)
    scorer = reference.scorer(layout)
    assert scorer is not None
    assert not scorer.needs_channels
    assert np.isfinite(scorer.reference_scores).all()


def test_every_field_must_fit_the_layers(artifact: Artifact, archive: Path) -> None:
    """Too few samples, layers or channels in any field are found when the file is loaded, and the field is named."""
    made = add_reference(artifact, archive, least=1)
    layout = SideLayout(tuple(made.manifest.layers))
    with np.load(made.folder / REFERENCE) as file:
        whole = dict(file)
    wrong = {
        "values": whole["values"][:, 1:],
        "mean": whole["mean"][1:],
        "var": whole["var"][None],
        "labels": whole["labels"][1:],
        "held_out": whole["held_out"][:, :0],
        "center": np.zeros(2),
        "directions": whole["directions"][1:],
        "levels": whole["levels"][1:],
    }
    assert wrong.keys() == whole.keys()
    for name, array in wrong.items():
        np.savez(made.folder / REFERENCE, allow_pickle=False, **whole | {name: array})
        with pytest.raises(ArtifactError, match=f"holds {name} of shape.*make it again" if name != "center" else "make it again"):
            Reference.load(made, layout)
        np.savez(made.folder / REFERENCE, allow_pickle=False, **{key: value for key, value in whole.items() if key != name})
        if name not in ("labels", "levels"):  # which tell files of before there were scores, and of before there were levels
            with pytest.raises(ArtifactError, match="cannot be read; make it again"):
                Reference.load(made, layout)


def _shaped(plain: Layer, shape: list[Dimension] | None) -> Layer:
    return plain.model_copy(update={"shape": shape})


_FIRST = _shaped(layer("first", "batch_norm", {"before": "a", "after": "b"}, axis=1), ["batch", 2, 4, 4])
_ADD = _shaped(layer("add", "residual_add", {"identity": "b", "residual": "f", "sum": "s"}, axis=1), ["batch", 2, 4, 4])
_LAST = _shaped(layer("last", "layer_norm", {"before": "s", "after": "t"}, axis=2), ["batch", "length", 3])


def test_each_side_has_the_moments_of_its_channels() -> None:
    """From the channels of all reductions one after the other, where each tensor is once."""
    layout = SideLayout((_FIRST, _ADD, _LAST))
    # a, b, f, s with 2 channels each; s again along its last axis, and t, with 3
    mean = np.array([0, 1, 10, 11, 20, 21, 30, 31, 40, 41, 42, 50, 51, 52], np.float64)
    assert len(layout.reductions) == 6
    moments = Reference(np.zeros((1, 1), np.float32), mean, mean + 0.5).moments_of(layout)
    assert {place: of_channels.tolist() for place, (of_channels, _) in moments.items()} == {
        ("first", "before"): [0, 1],
        ("first", "after"): [10, 11],
        ("add", "identity"): [10, 11],
        ("add", "residual"): [20, 21],
        ("add", "sum"): [30, 31],
        ("last", "before"): [40, 41, 42],
        ("last", "after"): [50, 51, 52],
    }
    assert moments["last", "before"][1].tolist() == [40.5, 41.5, 42.5]


@pytest.mark.parametrize("shape", [None, ["batch", "channels", 4, 4]])
def test_channels_that_the_manifest_does_not_count_have_no_moments(shape: list[Dimension] | None) -> None:
    """Where the number of channels is not known, nothing is taken from the wrong place."""
    layout = SideLayout((_shaped(_FIRST, shape), _LAST))
    assert Reference(np.zeros((1, 1), np.float32), np.zeros(10), np.zeros(10)).moments_of(layout) == {}


def test_an_interrupted_command_leaves_the_artifact_as_it_was(
    artifact: Artifact, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the manifest is written, or between the two renames: the artifact is whole and nothing lies beside it."""
    before = add_reference(artifact, archive, least=1)
    checked = {path.name: path.read_bytes() for path in before.folder.iterdir()}
    rename = Path.rename

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def interrupted_rename(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(path, target)

    for owner, name, stop in ((reference_module, "write_manifest", interrupted), (Path, "rename", interrupted_rename)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stop)
            with pytest.raises(KeyboardInterrupt):
                add_reference(before, archive, least=1)
        assert {path.name: path.read_bytes() for path in before.folder.iterdir()} == checked
        assert [path.name for path in before.folder.parent.iterdir()] == [before.folder.name]
    load_artifact(before.folder)


def test_a_reference_of_before_there_were_levels_is_read(artifact: Artifact, archive: Path) -> None:
    """It scores as it did, without them."""
    made = add_reference(artifact, archive, least=1)
    with np.load(made.folder / REFERENCE) as file:
        earlier = {name: file[name] for name in file if name != "levels"}
    np.savez(made.folder / REFERENCE, allow_pickle=False, **earlier)
    reference = Reference.load(made, SideLayout(tuple(made.manifest.layers)))
    assert reference is not None
    assert reference.evidence is not None
    assert reference.evidence.levels.shape == (40, 0)
