import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models.artifact import MANIFEST, MODEL, Artifact, ArtifactError, Layer, TensorSpec, load_artifact, write_manifest
from models.instrument.probes import Probe
from models.preprocessing import ImagePreprocessing, TextPreprocessing
from tests.networks import draft_manifest

_LAYER = Layer.of(
    Probe(
        layer="layer1.0.bn1",
        kind="batch_norm",
        tensors={"before": "conv", "after": "bn"},
        shape=["batch", 2, 8, 8],
        channel_axis=1,
        epsilon=1e-5,
        gamma=np.array([1.0, 3.0]),
        beta=np.array([-1.0, 0.0]),
    )
)


@pytest.fixture
def written(tmp_path: Path) -> Artifact:
    """A text artifact of three files and a graph without nodes."""
    folder = tmp_path / "encoder" / "1"
    folder.mkdir(parents=True)
    onnx.save(onnx.ModelProto(ir_version=9), folder / MODEL)
    for name in ("tokenizer.json", "README.md"):
        (folder / name).write_bytes(f"content of {name}".encode())
    manifest = draft_manifest(folder, labels=["yes", "no"], preprocessing=TextPreprocessing(max_length=8))
    ids, mask = (TensorSpec(name=name, dtype="int64", shape=["batch", "length"]) for name in ("input_ids", "attention_mask"))
    logits = TensorSpec(name="logits", dtype="float32", shape=["batch", 2])
    complete = manifest.model_copy(update={"layers": [_LAYER], "inputs": [ids, mask], "outputs": [logits]})
    return write_manifest(folder, complete, [MODEL, "tokenizer.json", "README.md"])


def _change(folder: Path, **fields: Any) -> None:
    """Overwrites fields of the manifest on disk."""
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _error(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        load_artifact(folder)
    return str(caught.value)


def test_what_was_written_is_loaded(written: Artifact) -> None:
    """The manifest comes back equal, with the SHA-256 of every file and the path of the model."""
    loaded = load_artifact(written.folder)
    assert loaded == written
    assert loaded.model_path == written.folder / "model.onnx"
    assert loaded.manifest.files == {
        name: hashlib.sha256((written.folder / name).read_bytes()).hexdigest() for name in (MODEL, "tokenizer.json", "README.md")
    }
    assert isinstance(loaded.manifest.preprocessing, TextPreprocessing)


def test_an_image_manifest_is_told_by_its_kind(written: Artifact) -> None:
    """The preprocessing of images is read as such."""
    image = {"name": "image", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}
    preprocessing = ImagePreprocessing(resize=146, crop=128).model_dump(mode="json")
    _change(written.folder, task="image-classification", inputs=[image], preprocessing=preprocessing)
    assert load_artifact(written.folder).manifest.preprocessing == ImagePreprocessing(resize=146, crop=128)


def test_a_missing_manifest_says_what_an_artifact_is(tmp_path: Path) -> None:
    """An empty folder, and one that is not there."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        message = _error(folder)
        assert message.startswith(f"{folder.parent.name}/{folder.name}/{MANIFEST} cannot be read (No such file or directory)")
        assert "an artifact is a folder NAME/VERSION with a manifest.json" in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"<html>", b'{"format": 1}', b"\xff\xfe"])
def test_an_invalid_manifest_is_refused(written: Artifact, content: bytes) -> None:
    """Neither half a JSON nor another JSON nor bytes that are no text get through; the error names the file."""
    (written.folder / MANIFEST).write_bytes(content)
    assert f"encoder/1/{MANIFEST}" in _error(written.folder)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"format": 2}, "format"),
        ({"task": ""}, "task"),
        ({"labels": "yes"}, "labels"),
        ({"surprise": 1}, "surprise"),
        ({"name": "../encoder"}, "name"),
        ({"version": ""}, "version"),
        ({"preprocessing": {"kind": "sound"}}, "preprocessing"),
        ({"preprocessing": {"kind": "text", "max_length": 0}}, "preprocessing.text.max_length"),
        ({"inputs": [{"name": "x", "dtype": "bfloat16", "shape": [1]}]}, "inputs.0.dtype"),
    ],
)
def test_an_invalid_field_is_named(written: Artifact, fields: dict[str, Any], where: str) -> None:
    """The error says which field is wrong and what to do."""
    _change(written.folder, **fields)
    message = _error(written.folder)
    assert f"{MANIFEST}: {where}: " in message
    assert message.endswith("; export the model again")


@pytest.mark.parametrize("name", [MODEL, "tokenizer.json"])
def test_a_missing_file_is_named(written: Artifact, name: str) -> None:
    """What the manifest lists must be there."""
    (written.folder / name).unlink()
    message = _error(written.folder)
    assert message.startswith(f"encoder/1/{name} cannot be read (No such file or directory)")
    assert "the manifest lists it, restore the file" in message


@pytest.mark.parametrize("name", [MODEL, "tokenizer.json", "README.md"])
def test_a_changed_file_is_named_with_both_digests(written: Artifact, name: str) -> None:
    """One byte more: the error tells the file, what it is now and what it should be."""
    path = written.folder / name
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes() + b"!")
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    assert _error(written.folder).startswith(f"encoder/1/{name} has SHA-256 {actual}, the manifest says {expected}; ")


def test_a_manifest_without_a_model_is_refused(written: Artifact) -> None:
    """The one file that every artifact has."""
    _change(written.folder, files={})
    assert "files lists no model.onnx; export the model again" in _error(written.folder)


@pytest.mark.parametrize("name", ["../x", "..", ".hidden", "/etc/passwd", "a/b", "a\\b", "", "x\n", "x" * 101])
def test_files_cannot_leave_the_folder(written: Artifact, name: str) -> None:
    """A file name is one plain path component; any other is refused before anything is opened."""
    files = dict(written.manifest.files)
    _change(written.folder, files=files | {name: "0" * 64})
    message = _error(written.folder)
    assert f"{MANIFEST}: files." in message
    assert "SHA-256" not in message


def test_a_file_that_cannot_be_summed_is_not_written(tmp_path: Path) -> None:
    """A manifest never lists a file that is not there."""
    manifest = draft_manifest(tmp_path, labels=[], preprocessing=TextPreprocessing(max_length=8))
    with pytest.raises(ArtifactError, match=re.escape(f"{tmp_path.name}/{MODEL} cannot be read")):
        write_manifest(tmp_path, manifest, [MODEL])
    assert list(tmp_path.iterdir()) == []


def test_a_layer_summarizes_its_parameters() -> None:
    """gamma and beta over the channels: mean, population standard deviation, extremes; the rest as the probe has it."""
    assert _LAYER.gamma is not None
    assert _LAYER.beta is not None
    assert _LAYER.gamma.model_dump() == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0}
    assert _LAYER.beta.model_dump() == {"mean": -0.5, "std": 0.5, "min": -1.0, "max": 0.0}
    assert (_LAYER.layer, _LAYER.kind, _LAYER.channel_axis, _LAYER.epsilon) == ("layer1.0.bn1", "batch_norm", 1, 1e-5)
    assert _LAYER.mask is None


def test_an_add_has_no_parameters() -> None:
    """A residual add has neither gamma nor beta nor epsilon; the mask of a text model is kept."""
    sides = {"identity": "x", "residual": "f", "sum": "y"}
    layer = Layer.of(Probe("add", "residual_add", sides, ["batch", "length", 16], channel_axis=2), mask="attention_mask")
    assert (layer.gamma, layer.beta, layer.epsilon) == (None, None, None)
    assert (layer.tensors, layer.mask) == (sides, "attention_mask")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"labels": ["yes"]}, "1 labels do not fit an output of 2 classes"),
        ({"preprocessing": {"kind": "image", "resize": 8, "crop": 8}}, "preprocessing of kind image makes one float32 or float16"),
        ({"inputs": [{"name": "x", "dtype": "int64", "shape": [1]}]}, "preprocessing of kind text makes inputs named input_ids"),
        ({"mask": "nowhere"}, "the mask nowhere is none of the inputs input_ids, attention_mask"),
        ({"inputs": []}, "a model with 0 inputs and 1 outputs"),
        ({"preprocessing": {"kind": "text", "tokenizer": "other.json", "max_length": 8}}, "does not list the tokenizer other.json"),
        ({"preprocessing": {"kind": "text", "tokenizer": "../tokenizer.json", "max_length": 8}}, "preprocessing"),
    ],
)
def test_contradictions_are_named(written: Artifact, fields: dict[str, Any], expected: str) -> None:
    """A manifest whose parts do not fit together is refused before anything is served."""
    _change(written.folder, **fields)
    assert expected in _error(written.folder)


def _keep_outside(written: Artifact, place: str, location: str) -> None:
    """A graph with a tensor whose data lies in another file."""
    tensor = onnx.TensorProto(name="weight", dims=[2], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    constant = onnx.helper.make_node("Constant", [], ["weight"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    model = onnx.ModelProto(ir_version=9)
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "constant":
        model.graph.node.append(constant)
    elif place == "branch":
        branch = model.graph.node.add(op_type="If").attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        branch.g.node.append(constant)
    else:
        model.functions.add(name="f").node.append(constant)
    (written.folder / MODEL).write_bytes(model.SerializeToString())


@pytest.mark.parametrize("place", ["initializer", "constant", "branch", "function"])
def test_weights_in_a_file_must_be_listed(written: Artifact, place: str) -> None:
    """Wherever in the model a tensor is: its file is among those of the manifest, and so checked, or it is refused."""
    (written.folder / "weights.bin").write_bytes(bytes(8))
    for location in ("weights.bin", "../weights.bin", "/etc/hostname"):
        _keep_outside(written, place, location)
        write_manifest(written.folder, written.manifest, list(written.manifest.files))
        message = _error(written.folder)
        assert f"keeps weights in {Path(location).name}, which is none of the files of the manifest" in message
        assert "/etc" not in message
    _keep_outside(written, place, "weights.bin")
    write_manifest(written.folder, written.manifest, [*written.manifest.files, "weights.bin"])
    assert "weights.bin" in load_artifact(written.folder).manifest.files


def test_a_file_that_is_no_graph_is_refused(written: Artifact) -> None:
    """Though its SHA-256 is right."""
    (written.folder / MODEL).write_bytes(b"no graph")
    write_manifest(written.folder, written.manifest, list(written.manifest.files))
    assert _error(written.folder) == "encoder/1/model.onnx cannot be read as ONNX; export the model again"
