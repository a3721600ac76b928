"""Any ONNX model becomes an artifact; what the graph does not say is found out, what cannot be served is refused."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from models.__main__ import main
from models.artifact import MODEL, ArtifactError, Manifest, load_artifact
from models.graph_import import GraphImportError, ImportOptions, import_graph
from models.instrument.graph_file import GraphFileError
from models.trial import TrialError
from tests import graphs
from tests.graphs import WIDTH, save
from tests.models.instrument.test_graph_file import functions
from tests.models.instrument.test_skip_norms import skip_norm
from tests.networks import small_tokenizer


def import_model(model: onnx.ModelProto, folder: Path, options: ImportOptions | None = None) -> Manifest:
    """Writes the model into the folder and imports it into a repository there."""
    path = save(model, folder / "given.onnx")
    return import_graph(path, folder / "repository" / "given" / "1", options or ImportOptions()).manifest


def test_a_batch_is_found_by_running(tmp_path: Path) -> None:
    """Rows that stand alone are a batch, whatever its dimension is called; the layers have the shapes that they really have."""
    manifest = import_model(graphs.block("N"), tmp_path)
    assert manifest.batched
    assert [(spec.name, spec.dtype, spec.shape) for spec in manifest.inputs] == [("x", "float32", ["N", "length", WIDTH])]
    assert [(spec.name, spec.shape) for spec in manifest.outputs] == [("y", ["N", "length", WIDTH])]
    assert [(layer.layer, layer.kind, layer.shape) for layer in manifest.layers] == [
        ("add", "residual_add", ["N", "length", WIDTH]),
        ("norm", "layer_norm", ["N", "length", WIDTH]),
    ]
    assert manifest.extents == {"length": 8}
    assert (manifest.task, manifest.labels, manifest.preprocessing, manifest.notes) == ("inference", [], None, [])


def test_dimensions_without_names_are_not_taken_for_one(tmp_path: Path) -> None:
    """Two inputs whose lengths the graph does not name may have different lengths."""
    nodes = [helper.make_node("ReduceSum", [name, "axis"], [f"{name}s"], keepdims=0) for name in "ab"]
    model = graphs.graph_of(
        [*nodes, helper.make_node("Add", ["as", "bs"], ["y"])],
        {name: (TensorProto.FLOAT, [None, None]) for name in "ab"},
        {"y": (TensorProto.FLOAT, None)},
        {"axis": np.array([1])},
    )
    manifest = import_model(model, tmp_path)
    assert [spec.shape for spec in manifest.inputs] == [["batch", "a.1"], ["batch", "b.1"]]
    assert manifest.outputs[0].shape == ["batch"]


def test_a_fixed_batch_of_one(tmp_path: Path) -> None:
    """Such a model runs its inputs one by one, and its layers are watched."""
    manifest = import_model(graphs.block(1), tmp_path)
    assert not manifest.batched
    assert manifest.inputs[0].shape == [1, "length", WIDTH]
    assert [layer.shape for layer in manifest.layers] == [[1, "length", WIDTH]] * 2


def test_a_detector_gives_as_many_rows_as_it_finds(tmp_path: Path) -> None:
    """A threshold without a batch, and outputs whose axis 0 is no batch."""
    manifest = import_model(graphs.detector(), tmp_path)
    assert not manifest.batched
    assert [spec.shape for spec in manifest.inputs] == [[1, 6, 4], []]
    assert [spec.shape for spec in manifest.outputs] == [[None, None], ["found", 2]]
    assert [layer.layer for layer in manifest.layers] == ["norm"]


def test_rows_that_influence_each_other_are_no_batch(tmp_path: Path) -> None:
    """A model that takes the mean of its batch away would answer by what else is in the queue: it runs one by one."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])]
    shape: list[int | str] = ["batch", 4]
    model = graphs.graph_of(nodes, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)})
    manifest = import_model(model, tmp_path)
    assert not manifest.batched
    assert manifest.inputs[0].shape == [1, 4]
    assert "requests run one by one" in manifest.notes[0]


def test_layers_without_the_batch_are_left_out_and_said_so(tmp_path: Path) -> None:
    """A norm over rows that are no inputs cannot be told for one input."""
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["r"]),
        helper.make_node("LayerNormalization", ["r", "gamma"], ["n"], name="inner"),
        helper.make_node("Reshape", ["n", "back"], ["y"]),
    ]
    shape: list[int | str] = ["batch", 3, WIDTH]
    constants = {"flat": np.array([-1, WIDTH]), "back": np.array([-1, 3, WIDTH]), "gamma": np.ones(WIDTH, np.float32)}
    model = graphs.graph_of(nodes, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)}, constants)
    manifest = import_model(model, tmp_path)
    assert manifest.batched
    assert manifest.layers == []
    assert any("not watched" in note and "inner" in note for note in manifest.notes)


def test_a_mask_of_any_name(tmp_path: Path) -> None:
    """`--mask` names the input that tells tokens from padding; without it no layer is masked."""
    assert [layer.mask for layer in import_model(graphs.masked(), tmp_path).layers] == [None]
    (tmp_path / "other").mkdir()
    manifest = import_model(graphs.masked(), tmp_path / "other", ImportOptions(mask="keep"))
    assert (manifest.mask, [layer.mask for layer in manifest.layers]) == ("keep", ["keep"])
    (tmp_path / "third").mkdir()
    with pytest.raises(GraphImportError, match=r"the mask table is no input of \(batch, length\)"):
        import_model(graphs.masked(), tmp_path / "third", ImportOptions(mask="table"))


def heads(order: list[int], static: int | None = None) -> onnx.ModelProto:
    """The norm of each of two heads of a token, (batch, length, 2, 4) in another order of axes, and one of all tokens' mean."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Reshape", ["e", "split"], ["apart"]),
        helper.make_node("Transpose", ["apart"], ["t"], perm=order),
        helper.make_node("LayerNormalization", ["t", "gamma"], ["n"], name="of_heads"),
        helper.make_node("ReduceMean", ["n"], ["m"], axes=[order.index(1)], keepdims=0),
        helper.make_node("Cast", ["attention_mask"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["c", "axis"], ["count"]),
        helper.make_node("Reshape", ["m", "together"], ["r"]),
        helper.make_node("Mul", ["r", "count"], ["s"]),
        helper.make_node("LayerNormalization", ["s", "gamma8"], ["y"], name="pooled"),
    ]
    shape: list[int | str] = ["batch", static or "length"]
    constants = {
        "table": graphs.weights(50, WIDTH), "split": np.array([0, 0, 2, 4]), "gamma": graphs.weights(4), "axis": np.array([1]),
        "together": np.array([0, WIDTH]), "gamma8": graphs.weights(WIDTH),
    }  # fmt: skip
    inputs: dict[str, tuple[int, graphs.Shape]] = dict.fromkeys(("ids", "attention_mask"), (TensorProto.INT64, shape))
    return graphs.graph_of(nodes, inputs, {"y": (TensorProto.FLOAT, ["batch", WIDTH])}, constants)


@pytest.mark.parametrize(("order", "axis"), [([0, 1, 2, 3], 1), ([0, 2, 1, 3], 2)])
@pytest.mark.parametrize("static", [None, 7])
def test_the_axis_of_the_tokens_is_found(order: list[int], axis: int, static: int | None, tmp_path: Path) -> None:
    """It is the one as long as the mask; a layer without one, such as of pooled tokens, is not masked."""
    layers = import_model(heads(order, static), tmp_path).layers
    assert [(layer.layer, layer.mask, layer.mask_axis) for layer in layers] == [
        ("of_heads", "attention_mask", axis),
        ("pooled", None, 1),
    ]


@pytest.mark.parametrize("name", ["attention_mask", "input_mask", "token_mask", "mask"])
def test_a_mask_is_known_by_its_name(name: str, tmp_path: Path) -> None:
    """Names that mean 1 at tokens are taken, which the manifest notes unless it is the usual one; `--mask ''` takes none."""
    manifest = import_model(graphs.masked(name), tmp_path)
    assert (manifest.mask, [layer.mask for layer in manifest.layers]) == (name, [name])
    assert [note.split(" ")[0] for note in manifest.notes] == ([] if name == "attention_mask" else [name])
    (tmp_path / "other").mkdir()
    manifest = import_model(graphs.masked(name), tmp_path / "other", ImportOptions(mask=""))
    assert (manifest.mask, [layer.mask for layer in manifest.layers], manifest.notes) == (None, [None], [])


@pytest.mark.parametrize("name", ["padding_mask", "key_padding_mask", "pad_mask"])
def test_a_mask_that_may_mean_either_is_not_guessed(name: str, tmp_path: Path) -> None:
    """It is 1 at padding in some frameworks, at tokens in others: nothing is masked, and a note tells how."""
    manifest = import_model(graphs.masked(name), tmp_path)
    assert (manifest.mask, [layer.mask for layer in manifest.layers]) == (None, [None])
    assert manifest.notes == [
        f"{name} may be 1 at tokens or at padding: padding is counted; say that it is 1 at tokens by --mask {name}"
    ]


def test_a_mask_of_another_shape_is_none(tmp_path: Path) -> None:
    """An input called mask that is not (batch, length) is left alone."""
    nodes = [helper.make_node("Mul", ["x", "mask"], ["y"])]
    shape: list[int | str] = ["n", "length", WIDTH]
    inputs: dict[str, tuple[int, graphs.Shape]] = dict.fromkeys(("x", "mask"), (TensorProto.FLOAT, shape))
    manifest = import_model(graphs.graph_of(nodes, inputs, {"y": (TensorProto.FLOAT, shape)}), tmp_path)
    assert manifest.mask is None
    assert not any("mask" in note for note in manifest.notes)


def test_sums_inside_fused_operators_are_exposed(tmp_path: Path) -> None:
    """The artifact's graph has the tensors that its layers name."""
    manifest = import_model(skip_norm("SkipLayerNormalization", bias=True), tmp_path)
    assert [layer.layer for layer in manifest.layers] == ["block.norm.add", "block.norm", "last"]
    model = onnx.load(tmp_path / "repository" / "given" / "1" / MODEL)
    made = {name for node in model.graph.node for name in node.output} | {"x"}
    assert {tensor for layer in manifest.layers for tensor in layer.tensors.values()} <= made


def test_functions_are_written_out(tmp_path: Path) -> None:
    """The artifact's graph has the nodes of the model's functions, under the names that its layers have, and the same answers."""
    manifest = import_model(functions(), tmp_path)
    assert [layer.kind for layer in manifest.layers] == ["residual_add", "layer_norm"] * 2
    assert manifest.notes == []
    model = onnx.load(tmp_path / "repository" / "given" / "1" / MODEL)
    assert not model.functions
    x = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)
    sessions = (onnxruntime.InferenceSession(each.SerializeToString()) for each in (functions(), model))
    given, written_out = (session.run(["y"], {"x": x})[0] for session in sessions)
    np.testing.assert_allclose(written_out, given, rtol=1e-6)


def test_every_type_of_the_protocol(tmp_path: Path) -> None:
    """Inputs and outputs may hold whatever the protocol can carry."""
    manifest = import_model(graphs.types(), tmp_path)
    assert [spec.dtype for spec in manifest.inputs] == [spec.dtype for spec in manifest.outputs]
    assert {"bool", "uint64", "int8", "float16", "float64", "string"} < {spec.dtype for spec in manifest.inputs}


def test_a_type_that_the_protocol_does_not_have(tmp_path: Path) -> None:
    """bfloat16 at the door is refused with the remedy, and nothing is left behind."""
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    model = graphs.graph_of(nodes, {"x": (TensorProto.BFLOAT16, ["n", 2])}, {"y": (TensorProto.FLOAT, ["n", 2])})
    with pytest.raises(GraphImportError, match=r"x is BFLOAT16.*add a Cast"):
        import_model(model, tmp_path)
    assert not (tmp_path / "repository").exists()


def test_labels_and_preprocessing_make_a_classifier(tmp_path: Path) -> None:
    """Labels of one a line or as JSON; they must fit an output."""
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["logits"])]
    model = graphs.graph_of(nodes, {"x": (TensorProto.FLOAT, ["n", 3, "h", "w"])}, {"logits": (TensorProto.FLOAT, None)})
    labels, preprocessing = tmp_path / "labels", tmp_path / "preprocessing.json"
    labels.write_text('["red", "green", "blue"]')
    preprocessing.write_text('{"kind": "image", "resize": 40, "crop": 32}')
    manifest = import_model(model, tmp_path, ImportOptions(labels, preprocessing))
    assert (manifest.task, manifest.labels, manifest.scores_output) == ("image-classification", ["red", "green", "blue"], 0)
    assert manifest.extents == {"h": 32, "w": 32}
    assert manifest.outputs[0].shape == ["n", 3]
    labels.write_text("red\ngreen\n")
    with pytest.raises(GraphImportError, match="2 labels fit no output"):
        import_graph(tmp_path / "given.onnx", tmp_path / "repository" / "given" / "2", ImportOptions(labels))


def test_preprocessing_must_fit_the_inputs(tmp_path: Path) -> None:
    """Photos cannot become the inputs of an encoder, nor texts those of unknown names; a broken file is told by its field."""
    (tmp_path / "image.json").write_text('{"kind": "image", "resize": 40, "crop": 32}')
    (tmp_path / "text.json").write_text('{"kind": "text", "max_length": 16}')
    (tmp_path / "broken.json").write_text('{"kind": "text"}')
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    for name, kind, message in (
        ("image", ArtifactError, "preprocessing of kind image makes one"),
        ("text", ArtifactError, "preprocessing of kind text makes inputs named input_ids"),
        ("broken", GraphImportError, "max_length"),
    ):
        with pytest.raises(kind, match=message):
            import_model(graphs.masked(), tmp_path, ImportOptions(preprocessing=tmp_path / f"{name}.json"))


def test_extents_that_fit_can_be_given(tmp_path: Path) -> None:
    """A graph that runs with no guessed extent says what was tried; with the right one it is imported."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape: list[int | str] = ["n", "length"]
    constants = {"shape": np.array([0, 7, 11])}
    model = graphs.graph_of(nodes, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, None)}, constants)
    with pytest.raises(TrialError, match=r"length=8.*--extent NAME=NUMBER"):
        import_model(model, tmp_path)
    manifest = import_model(model, tmp_path, ImportOptions(extents={"length": 77}))
    assert (manifest.batched, manifest.extents) == (True, {"length": 77})


def external(folder: Path, location: str) -> Path:
    """A model whose weights lie in another file, at `location` as the model tells it."""
    model = graphs.block()
    path = folder / "given.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    told = onnx.load(path, load_external_data=False)
    for tensor in told.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    onnx.save(told, path)
    if location != "weights.bin":
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        (folder / "weights.bin").rename(folder / location)
    return path


@pytest.mark.parametrize(("location", "name"), [("weights.bin", "weights.bin"), ("deep/model.onnx", "weights-model.bin")])
def test_external_weights_are_copied_with_their_checksums(location: str, name: str, tmp_path: Path) -> None:
    """Beside the model, byte by byte; under another name where an artifact cannot have that one."""
    artifact = import_graph(external(tmp_path, location), tmp_path / "repository" / "given" / "1", ImportOptions())
    assert set(artifact.manifest.files) == {MODEL, name, "README.md"}
    assert (artifact.folder / name).read_bytes() == (tmp_path / location).read_bytes()
    assert artifact.manifest.files[name] == hashlib.sha256((tmp_path / location).read_bytes()).hexdigest()
    (artifact.folder / name).write_bytes(b"other")
    with pytest.raises(ArtifactError, match="has SHA-256"):
        load_artifact(artifact.folder)


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "links", "missing"])
def test_weights_outside_the_folder_are_refused(kind: str, tmp_path: Path) -> None:
    """Neither a path that leaves the folder nor a link out of it is followed; a missing file is named."""
    folder = tmp_path / "given"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    location = {
        "above": "../secret.bin",
        "absolute": str(secret),
        "link": "link.bin",
        "links": "link.bin",
        "missing": "weights.bin",
    }[kind]
    path = external(folder, location)
    if kind == "links":  # as the caches of model hubs have them
        path.rename(tmp_path / "blob.onnx")
        path.symlink_to(tmp_path / "blob.onnx")
    if kind in ("link", "links"):
        (folder / "link.bin").rename(secret)
        (folder / "link.bin").symlink_to(secret)
    if kind == "missing":
        (folder / "weights.bin").unlink()
    with pytest.raises(GraphFileError, match="which is not there" if kind == "missing" else "outside its folder"):
        import_graph(path, tmp_path / "repository" / "given" / "1", ImportOptions())
    assert not (tmp_path / "repository").exists()


def test_a_link_to_a_model_may_stand_alone(tmp_path: Path) -> None:
    """The weights lie beside what it points to."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "link.onnx").symlink_to(external(tmp_path / "kept", "weights.bin"))
    artifact = import_graph(tmp_path / "link.onnx", tmp_path / "repository" / "given" / "1", ImportOptions())
    assert set(artifact.manifest.files) == {MODEL, "weights.bin", "README.md"}


def of_opset(opset: int) -> onnx.ModelProto:
    """x + x W, then BatchNormalization and a layer norm as the opset writes it."""
    axes: dict[str, Any] = {"axes": [-1]} if opset < 18 else {}
    mean = [helper.make_node("ReduceMean", [each, "axes"][: 2 - len(axes)], [to], **axes) for each, to in (("b", "m"), ("q", "v"))]
    written_out = [
        mean[0], helper.make_node("Sub", ["b", "m"], ["d"]), helper.make_node("Mul", ["d", "d"], ["q"]), mean[1],
        helper.make_node("Add", ["v", "epsilon"], ["e"]), helper.make_node("Sqrt", ["e"], ["r"]),
        helper.make_node("Div", ["d", "r"], ["n"]), helper.make_node("Mul", ["n", "gamma"], ["y"], name="norm"),
    ]  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["f"]),
        helper.make_node("Add", ["f", "x"], ["s"], name="add"),
        helper.make_node("BatchNormalization", ["s", "gamma", "beta", "beta", "var"], ["b"], name="batch"),
        *written_out,
    ]
    if opset >= 17:
        nodes.append(helper.make_node("LayerNormalization", ["n", "gamma"], ["y"], name="norm"))
        del nodes[-2]
    shape: list[int | str] = ["batch", WIDTH]
    constants = {
        "w": graphs.weights(WIDTH, WIDTH), "gamma": graphs.weights(WIDTH), "beta": graphs.weights(WIDTH, seed=1),
        "var": np.ones(WIDTH, np.float32), "axes": np.array([-1]), "epsilon": np.array(1e-5, np.float32),
    }  # fmt: skip
    return graphs.graph_of(nodes, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)}, constants, opset)


@pytest.mark.parametrize("opset", range(11, onnx.defs.onnx_opset_version() + 1))
def test_every_opset(opset: int, tmp_path: Path) -> None:
    """A block with its norms is imported from opset 11 to the newest that there is."""
    kinds = [layer.kind for layer in import_model(of_opset(opset), tmp_path).layers]
    assert kinds == ["residual_add", "batch_norm", "layer_norm"] + ["layer_norm"] * (opset >= 17)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`import model.onnx --name NAME` writes NAME/VERSION into the repository, and never over what is there."""
    path = save(graphs.block(), tmp_path / "block.onnx")
    command = ["import", str(path), "--name", "block", "--version", "2", "--output", str(tmp_path / "repository")]
    main(command)
    assert "0 labels, 2 layers" in capsys.readouterr().out
    assert json.loads((tmp_path / "repository/block/2/manifest.json").read_text())["name"] == "block"
    with pytest.raises(SystemExit, match="exists already; choose another --version"):
        main(command)
    with pytest.raises(SystemExit, match="name the model by --name"):
        main(["import", str(path), "--name", "../block"])
    with pytest.raises(SystemExit, match="give the ONNX file"):
        main(["import", "--name", "block"])


def test_a_repository_that_cannot_be_written(tmp_path: Path) -> None:
    """The message names the folder and the option."""
    path = save(graphs.block(), tmp_path / "block.onnx")
    with pytest.raises(SystemExit, match=r"block\.onnx/block/1 cannot be written .*--output"):
        main(["import", str(path), "--name", "block", "--output", str(path)])


def test_import_needs_no_torch(tmp_path: Path) -> None:
    """It runs where only what serving needs is installed."""
    path = save(graphs.block(), tmp_path / "block.onnx")
    code = (
        "import sys; from models.__main__ import main; "
        f"main(['import', {str(path)!r}, '--name', 'block', '--output', {str(tmp_path / 'repository')!r}]); "
        "print(sorted({'torch', 'onnxscript', 'onnx_ir', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
