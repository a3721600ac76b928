"""8 bits for a photo model: the residual adds are still seen, what is missing is said, and accuracy decides."""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from models.__main__ import main
from models.artifact import Artifact, load_artifact
from models.data import imagenette
from models.graph_import import ImportOptions, import_graph
from models.quantization import QuantizationError, QuantizationOptions, quantize
from models.statistics.layers import BatchReducer, RunOutputs, SideLayout, summary
from service.engine.graph import prepare
from service.engine.session import Session
from tests import graphs
from tests.colours import import_colours
from tests.photos import write_archive

_SIDE = 32
_LABELS = list(imagenette.CLASSES.values())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of one colour: for each class 120 to train on, most of which are kept for choices, and two to evaluate on."""
    return write_archive(tmp_path_factory.mktemp("data") / "imagenette.tar", {"train": 120, "val": 2}, _SIDE)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """logits of x + BatchNorm(Conv(x)), where x is itself of a Conv with BatchNorm."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], name="stem.conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c0", "gamma", "beta", "mean", "var"], ["n0"], name="stem.bn"),
        helper.make_node("Relu", ["n0"], ["x"], name="stem.relu"),
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="block.conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "gamma", "beta", "mean", "var"], ["n1"], name="block.bn"),
        helper.make_node("Add", ["n1", "x"], ["s"], name="block.add"),
        helper.make_node("Relu", ["s"], ["r"], name="block.relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w2"], ["logits"], name="fc"),
    ]
    constants = {
        "w0": rng.normal(0, 0.3, (16, 3, 3, 3)), "w1": rng.normal(0, 0.1, (16, 16, 3, 3)), "w2": rng.normal(0, 1, (16, 10)),
        "gamma": rng.uniform(0.5, 1.5, 16), "beta": rng.normal(0, 0.2, 16), "mean": np.zeros(16), "var": np.ones(16),
    }  # fmt: skip
    shape: list[int | str] = ["batch", 3, "height", "width"]
    model = graphs.graph_of(
        nodes,
        {"image": (onnx.TensorProto.FLOAT, shape)},
        {"logits": (onnx.TensorProto.FLOAT, ["batch", 10])},
        {name: value.astype(np.float32) for name, value in constants.items()},
    )
    graphs.save(model, folder / "model.onnx")
    (folder / "labels").write_text("\n".join(_LABELS))
    (folder / "image.json").write_text(f'{{"kind": "image", "resize": {_SIDE}, "crop": {_SIDE}}}')
    options = ImportOptions(folder / "labels", folder / "image.json")
    return import_graph(folder / "model.onnx", folder / "repository" / "photos" / "1", options)


@pytest.fixture(scope="module")
def quantized(artifact: Artifact, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Its 8-bit version; what it loses on twenty photos of noise is not the question here."""
    folder = tmp_path_factory.mktemp("quantized") / "photos" / "1-int8"
    quantize(artifact, folder, archive, QuantizationOptions(photos=16, max_loss=1))
    return load_artifact(folder)


def test_what_can_be_seen_is_kept_and_the_rest_is_said(artifact: Artifact, quantized: Artifact) -> None:
    """The residual add under its name; a note names the folded normalizations; weights have 8 bits, one scale for each channel."""
    assert [layer.layer for layer in artifact.manifest.layers] == ["stem.bn", "block.bn", "block.add"]
    (add,) = quantized.manifest.layers
    known = artifact.manifest.layers[2]
    assert (add.layer, add.kind, add.shape, add.channel_axis) == (known.layer, known.kind, known.shape, known.channel_axis)
    (note,) = quantized.manifest.notes
    assert note.startswith("2 batch_norm cannot be seen: each is folded into the convolution before it")
    assert "stem.bn, block.bn" in note
    assert quantized.manifest.version == "1-int8"
    assert quantized.manifest.metrics["samples"] == 20
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(quantized.model_path).graph.initializer]
    assert any(value.dtype == np.int8 and value.shape == (16, 3, 3, 3) for value in weights)
    assert not any(value.dtype == np.float32 and value.size > 100 for value in weights)


def test_statistics_are_those_of_the_dequantized_values(artifact: Artifact, quantized: Artifact) -> None:
    """All three sides are near those of the model of 32 bits, and the sum is the sum of the other two."""
    feed = {"image": np.random.default_rng(5).standard_normal((2, 3, _SIDE, _SIDE)).astype(np.float32).clip(-2, 2)}
    sides = []
    for each in (artifact, quantized):
        layout = SideLayout(tuple(layer for layer in each.manifest.layers if layer.kind == "residual_add"))
        prepared = prepare(each, "cpu", layout.reductions, layout.pairs)
        result = Session(prepared, 1).run(feed)
        reduced = BatchReducer(layout, prepared.observers).reduce(RunOutputs(result.tensors, result.summary), feed)
        sides.append([[summary(reduced.pooled, (row, side)) for side in range(3)] for row in range(2)])
    for exact, rounded in zip(sides[0], sides[1], strict=True):
        for one, other in zip(exact, rounded, strict=True):
            assert one["count"] == other["count"]
            assert other["mean"] == pytest.approx(one["mean"], abs=0.05)
            assert other["std"] == pytest.approx(one["std"], rel=0.05)
        means = [side["mean"] for side in rounded]
        assert means[2] == pytest.approx(float(means[0] or 0) + float(means[1] or 0), abs=1e-5)


def test_a_seed_makes_it_again(artifact: Artifact, quantized: Artifact, archive: Path, tmp_path: Path) -> None:
    """The same photos give the same scales and weights, number by number."""
    again = quantize(artifact, tmp_path / "photos" / "1-int8", archive, QuantizationOptions(photos=16, max_loss=1))
    graphs_made = [onnx.load(made.model_path).graph for made in (quantized, again)]
    one, other = ({tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer} for graph in graphs_made)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


def test_too_much_loss_is_refused(artifact: Artifact, archive: Path, tmp_path: Path) -> None:
    """Nothing is written where the accuracy falls by more than is allowed."""
    with pytest.raises(QuantizationError, match=r"the accuracy falls from .* --max-loss"):
        quantize(artifact, tmp_path / "photos" / "1-int8", archive, QuantizationOptions(photos=16, max_loss=-1))
    assert not (tmp_path / "photos").exists()


def test_half_precision_is_refused(archive: Path, tmp_path: Path) -> None:
    """Its scales would be those of float16: the message names the way."""
    made = import_colours(tmp_path, 8, {"block": graphs.weights(3, 3)}, graphs.weights(3, 10), onnx.TensorProto.FLOAT16)
    with pytest.raises(QuantizationError, match="computes with float16; quantize the model of float32"):
        quantize(made, tmp_path / "colours" / "1-int8", archive, QuantizationOptions())


def test_other_labels_are_refused_before_any_work(artifact: Artifact, tmp_path: Path) -> None:
    """No archive is read and nothing is written for a model that could not be measured."""
    other = replace(artifact, manifest=artifact.manifest.model_copy(update={"labels": ["a", "b"]}))
    with pytest.raises(QuantizationError, match="does not have the labels of Imagenette"):
        quantize(other, tmp_path / "photos" / "1-int8", tmp_path / "nothing.tar", QuantizationOptions())
    assert not (tmp_path / "photos").exists()


def test_places_that_cannot_be_written(artifact: Artifact, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any work: the folder is named with --output, and missing temporary files with TMPDIR."""
    (tmp_path / "file").write_text("")
    command = ["quantize", str(artifact.folder), "--data", str(archive), "--output", str(tmp_path / "file")]
    with pytest.raises(SystemExit, match=r"file/photos/1-int8 cannot be written .*--output"):
        main(command)
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "file")])
    with pytest.raises(SystemExit, match=r"no folder for temporary files .*TMPDIR .*--tmpfs /tmp"):
        main(command)


def test_quantize_and_inspect_need_no_torch(artifact: Artifact, archive: Path, tmp_path: Path) -> None:
    """They run where only what serving needs is installed, and write in the given place alone."""
    quantize_it = ["quantize", str(artifact.folder), "--data", str(archive), "--photos", "16", "--max-loss", "1"]
    quantize_it += ["--output", str(tmp_path)]
    inspect_it = ["inspect", str(tmp_path / "photos" / "1-int8")]
    code = (
        f"import sys; from models.__main__ import main; main({quantize_it}); main({inspect_it}); "
        f"main({[*inspect_it, '--data', str(archive)]}); "
        "print(sorted({'torch', 'onnxscript', 'onnx_ir', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "block.add" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_command(artifact: Artifact, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes VERSION-int8 beside the version that it was given, once."""
    command = ["quantize", str(artifact.folder), "--data", str(archive), "--photos", "16", "--max-loss", "1"]
    main(command)
    printed = capsys.readouterr()
    assert "photos/1-int8: 1 of 3 layers" in printed.out
    assert "accuracy" in printed.out
    assert "cannot be seen" in printed.err
    with pytest.raises(SystemExit, match="exists already"):
        main(command)
