"""The report on shifts: its numbers are those that numpy computes from inputs, and windows are called what their test says."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.__main__ import main
from models.artifact import Artifact, Layer, load_artifact
from models.baselines import Mahalanobis, NearestNeighbour, energy, largest_probability
from models.data import imagenette
from models.evaluation import auroc, evaluation_batches, fpr_at_95_tpr, training_batches
from models.reference import add_reference
from models.shift_evaluation import evaluate_shifts
from models.shift_table import shift_table
from models.shifts import shifts_of
from models.statistics.anomaly import AnomalyScorer
from models.statistics.layers import SideLayout
from models.statistics.reference import Reference
from models.window_trials import WindowTrials
from tests import graphs
from tests.colours import import_colours
from tests.photos import write_archive

_SIDE, _SAMPLES = 8, 12
_WEIGHT, _HEAD = graphs.weights(3, 3, seed=1), graphs.weights(3, 10, seed=9) * 3


@pytest.fixture(scope="module", autouse=True)
def few_for_selection() -> Iterator[None]:
    """So that a small archive has photos to train on too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenette, "SELECTION_COUNT", 40)
        yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos of each class to train on, four to evaluate on."""
    return write_archive(tmp_path_factory.mktemp("data") / "imagenette.tar", {"train": 10, "val": 4}, _SIDE)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Artifact:
    """logits of the mean colour c (batch, 3) after s = c + c W: s H. With a reference of 40 samples."""
    folder = tmp_path_factory.mktemp("model")
    return add_reference(import_colours(folder, _SIDE, {"add": _WEIGHT}, _HEAD), archive, least=40)


def features(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """s of photos."""
    c = images.mean((2, 3))
    return np.asarray(c + c @ _WEIGHT, np.float32)


def values(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """The request values of the only layer: mean, std and l2 of its sides, ratio and cosine."""
    c = images.mean((2, 3)).astype(np.float64)
    f = c @ _WEIGHT
    sides = {"identity": c, "residual": f, "sum": c + f}
    norm = np.linalg.norm
    return np.stack(
        [
            *(x.mean(1) for x in sides.values()),
            *(x.std(1) for x in sides.values()),
            *(norm(x, axis=1) for x in sides.values()),
            norm(f, axis=1) / norm(c, axis=1),
            (f * c).sum(1) / norm(f, axis=1) / norm(c, axis=1),
        ],
        axis=1,
    )


def test_numbers_of_all_shifts(artifact: Artifact, archive: Path) -> None:
    """Every score of every input as numpy has it: AUROC and passing fraction of each shift, strange ones by their p-value."""
    report = evaluate_shifts(artifact, archive, samples=_SAMPLES)
    (clean,) = (inputs for (inputs,), _ in evaluation_batches(artifact, archive))
    batches = [(inputs, labels) for (inputs,), labels in training_batches(artifact, archive)]
    known = features(np.concatenate([inputs for inputs, _ in batches]))
    labels = np.concatenate([labels for _, labels in batches])
    assert (report.model, report.evaluation_inputs, report.fitted_on) == ("colours/1", 40, 60)
    reference = Reference.load(artifact, SideLayout(tuple(artifact.manifest.layers)))
    assert reference is not None
    assert reference.evidence is not None
    scorer = AnomalyScorer(SideLayout(tuple(artifact.manifest.layers)), reference.values, reference.evidence)
    mahalanobis, nearest = Mahalanobis.fit(known, labels), NearestNeighbour.fit(known, 50)
    scores: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float64]]] = {
        "layers": lambda x: scorer.score(values(x)).score,
        "softmax": lambda x: largest_probability(features(x) @ _HEAD),
        "energy": lambda x: energy(features(x) @ _HEAD),
        "Mahalanobis": lambda x: mahalanobis.score(features(x)),
        "kNN": lambda x: nearest.score(features(x)),
    }
    shifts = shifts_of(artifact, archive, None, _SAMPLES, 16)
    assert [(row.name, row.group, row.wrong_preprocessing) for row in report.rows] == [
        (shift.name, shift.group, shift.wrong_preprocessing) for shift in shifts
    ]
    for row, shift in zip(report.rows, shifts, strict=True):
        images = np.concatenate([inputs for (inputs,), _ in shift.batches()])
        assert row.inputs == len(images)
        for name, score in scores.items():
            positive, negative = score(images), score(clean)
            one = 1 / len(images)  # an input that lies at the threshold may fall on either side of it
            assert row.auroc[name] == pytest.approx(auroc(positive, negative), abs=0.02), (row.name, name)
            assert row.fpr95[name] == pytest.approx(fpr_at_95_tpr(positive, negative), abs=one + 1e-9), (row.name, name)
        assert row.strange == pytest.approx((scorer.score(values(images)).p_value <= 0.01).mean(), abs=one + 1e-9)
    assert any("left out" in note for note in report.notes)


def test_the_command_prints_a_table_or_json(artifact: Artifact, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both say the same; progress goes elsewhere."""
    command = ["evaluate", str(artifact.folder), "--archive", str(archive), "--samples", "4", "--shift"]
    main([*command, "--json"])
    told = capsys.readouterr()
    assert "BGR ..." in told.err
    report = evaluate_shifts(artifact, archive, samples=4)
    assert [row["auroc"] for row in json.loads(told.out)["rows"]] == [row.auroc for row in report.rows]
    main(command)
    assert capsys.readouterr().out == shift_table(report) + "\n"
    lines = {line.partition("  ")[0]: line.split() for line in shift_table(report).splitlines()}
    (row,) = (row for row in report.rows if row.name == "rotation")
    assert f"{row.windows[0].drift:.3f}" in lines["rotation"] if row.windows else "-" in lines["rotation"]


def test_bad_arguments(artifact: Artifact, archive: Path) -> None:
    """No samples, samples without shifts, and a model without a reference are refused with a remedy."""
    command = ["evaluate", str(artifact.folder), "--archive", str(archive)]
    with pytest.raises(ValueError, match="0 samples of each shift are asked for; ask for at least 1"):
        evaluate_shifts(artifact, archive, samples=0)
    with pytest.raises(SystemExit, match="give --shift too"):
        main([*command, "--samples", "5"])
    with pytest.raises(SystemExit, match=r"nothing\.tar"):
        main([*command, "--shift", "nothing.tar"])
    manifest = load_artifact(artifact.folder).manifest
    bare = Artifact(artifact.folder, manifest.model_copy(update={"files": {"model.onnx": manifest.files["model.onnx"]}}))
    with pytest.raises(ValueError, match="no reference that inputs can be scored by; make it with"):
        evaluate_shifts(bare, archive, samples=4)


def trials(clean: int, layers: int = 1) -> WindowTrials:
    """Layers with one side of independent normal values each, 500 in the reference and so many in the evaluation data."""
    rng = np.random.default_rng(0)
    kind: dict[str, Any] = {"kind": "layer_norm", "shape": None, "channel_axis": -1, "epsilon": None, "gamma": None, "beta": None}
    named = [Layer(layer=f"{i}", tensors={"before": f"{i}"}, **kind) for i in range(layers)]
    reference = Reference(rng.normal(size=(500, 3 * layers)).astype(np.float32), np.zeros(1), np.ones(1))
    return WindowTrials(reference, SideLayout(tuple(named)), rng.normal(size=(clean, 3 * layers)))


def test_layers_that_stand_out_are_told_by_thirds() -> None:
    """Of six layers, in the order of execution, the std of the fourth and both means of the last two have moved."""
    shifted = np.random.default_rng(1).normal(size=(100, 18))
    assert trials(60, layers=6).moved(shifted) == (0, 0, 0)
    shifted[:, [4, 5, 6 + 3]] += 3
    assert trials(60, layers=6).moved(shifted) == (0, 0.5, 1)


def test_windows_of_shifted_requests_are_drift() -> None:
    """All of those with many shifted requests, few with few, none or nearly none of those without."""
    far = np.random.default_rng(1).normal(3, 1, (1000, 3))
    windows = trials(2000)
    found = {(each.requests, each.shifted): each.drift for each in windows.detections(far)}
    assert set(found) == {(requests, part) for requests in (10, 100, 1000) for part in (0.05, 0.1, 0.5, 1)}
    assert all(found[requests, 1] == 1 for requests in (10, 100, 1000))
    assert found[1000, 0.1] > found[100, 0.1]
    assert [(each.requests, each.shifted) for each in windows.false_alarms()] == [(10, 0), (100, 0), (1000, 0)]
    assert all(each.drift < 0.01 for each in windows.false_alarms())


def test_windows_are_made_of_enough_inputs_only() -> None:
    """A window that would hold an input twice is left out, whether shifted inputs or the others are too few."""
    windows = trials(60)
    assert [(each.requests, each.shifted) for each in windows.detections(np.zeros((20, 3)))] == [
        (10, 0.05), (10, 0.1), (10, 0.5),
    ]  # fmt: skip
    assert [(each.requests, each.shifted) for each in windows.detections(np.zeros((60, 3)))][4:] == [(100, 0.5)]
    assert [each.requests for each in windows.false_alarms()] == [10]
