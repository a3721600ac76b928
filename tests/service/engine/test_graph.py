"""Graphs that are prepared in another way than those of the shipped models."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest

from models.artifact import Artifact, ArtifactError, load_artifact
from models.graph_import import ImportOptions, import_graph
from models.postprocessing import rank, softmax
from models.statistics.layers import BatchReducer, RunOutputs, SideLayout, summary
from service.engine import graph as engine_graph
from service.engine.graph import PreparedGraph, check_installed, check_started, prepare
from service.engine.session import Session
from tests.conftest import SHIPPED
from tests.graphs import WIDTH, graph_of, weights

_ROWS = 70_000  # of the embeddings: above what is read with the graph


def large(folder: Path) -> Artifact:
    """LayerNorm of embeddings, whose 2 MB lie in a file of their own."""
    nodes = [
        onnx.helper.make_node("Gather", ["table", "ids"], ["e"]),
        onnx.helper.make_node("LayerNormalization", ["e", "gamma"], ["y"], name="norm"),
    ]
    model = graph_of(
        nodes,
        {"ids": (onnx.TensorProto.INT64, ["batch", "length"])},
        {"y": (onnx.TensorProto.FLOAT, ["batch", "length", WIDTH])},
        {"table": weights(_ROWS, WIDTH), "gamma": weights(WIDTH)},
    )
    onnx.save(model, folder / "large.onnx", save_as_external_data=True, location="large.bin", size_threshold=0)
    return import_graph(folder / "large.onnx", folder / "large" / "1", ImportOptions())


def test_weights_that_stay_in_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit (protobuf has one) large weights are not even read; outputs and statistics are the same."""
    artifact = load_artifact(large(tmp_path).folder)
    layout = SideLayout(tuple(artifact.manifest.layers))
    feed = {"ids": np.arange(0, _ROWS, 7000).reshape(2, 5)}
    described, outputs = [], []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(engine_graph, "_MOST_BYTES", limit)
        prepared = prepare(artifact, "cpu", layout.reductions, layout.pairs)
        assert isinstance(prepared.model, bytes)
        assert len(prepared.model) < _ROWS
        assert bool(prepared.shared) == (limit > 0)
        assert prepared.weights == (None if limit else artifact.folder)
        result = Session(prepared, 1).run(feed)
        reduced = BatchReducer(layout, prepared.observers).reduce(RunOutputs(result.tensors, result.summary), feed)
        described.append([summary(reduced.pooled, (row, side)) for row in range(2) for side in range(2)])
        outputs.append(result.outputs[0])
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert described[0] == described[1]
    assert described[0][0]["count"] == 5 * WIDTH


def test_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a read-only root: a model is loaded all the same, and runs alike."""
    artifact = load_artifact(SHIPPED / "encoder" / "1")
    feed = {"input_ids": np.array([[1, 7, 2]]), "attention_mask": np.ones((1, 3), np.int64)}
    (expected,) = Session(prepare(artifact), 1).run(feed).outputs

    def nowhere() -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(engine_graph, "TemporaryDirectory", nowhere)
    np.testing.assert_array_equal(Session(prepare(artifact), 1).run(feed).outputs[0], expected)


def test_a_layer_norm_is_not_fused_with_the_addition_before_it(tmp_path: Path) -> None:
    """ONNX Runtime would make one operator of both, which takes longer on the CPU."""
    model = graph_of(
        [
            onnx.helper.make_node("Add", ["x", "b"], ["s"]),
            onnx.helper.make_node("LayerNormalization", ["s", "gamma", "beta"], ["y"]),
        ],
        {"x": (onnx.TensorProto.FLOAT, ["batch", "length", WIDTH]), "b": (onnx.TensorProto.FLOAT, ["batch", "length", WIDTH])},
        {"y": (onnx.TensorProto.FLOAT, ["batch", "length", WIDTH])},
        {"gamma": weights(WIDTH), "beta": weights(WIDTH)},
    )
    onnx.save(model, tmp_path / "model.onnx")
    prepared = prepare(import_graph(tmp_path / "model.onnx", tmp_path / "model" / "1", ImportOptions()))
    assert isinstance(prepared.model, bytes)
    assert [node.op_type for node in onnx.load_from_string(prepared.model).graph.node] == ["Add", "LayerNormalization"]


@pytest.mark.parametrize("compiled", [True, False])
def test_bfloat16_activations(compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are those of the bfloat16 numbers, in float32: by the compiled operator, and by numpy, which has no such type."""
    half = onnx.TensorProto.BFLOAT16
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["b"], to=half),
        onnx.helper.make_node("Cast", ["gamma"], ["g"], to=half),
        onnx.helper.make_node("LayerNormalization", ["b", "g"], ["n"], name="norm"),
        onnx.helper.make_node("Cast", ["n"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    shape: list[int | str] = ["batch", 3, WIDTH]
    model = graph_of(nodes, {"x": (1, shape)}, {"y": (1, shape)}, {"gamma": weights(WIDTH)})
    onnx.save(model, tmp_path / "half.onnx")
    artifact = import_graph(tmp_path / "half.onnx", tmp_path / "half" / "1", ImportOptions())
    if not compiled:
        monkeypatch.setattr(engine_graph, "library", lambda: None)
    layout = SideLayout(tuple(artifact.manifest.layers))
    prepared = prepare(artifact, "cpu", layout.reductions, layout.pairs)
    assert bool(prepared.observers) == compiled
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, WIDTH)).astype(np.float32)}
    result = Session(prepared, 1).run(feed)
    reduced = BatchReducer(layout, prepared.observers).reduce(RunOutputs(result.tensors, result.summary), feed)
    rounded = feed["x"].astype(ml_dtypes.bfloat16).astype(np.float64)
    for row in range(2):
        for side, values in enumerate((rounded[row], result.outputs[0][row])):
            found = summary(reduced.pooled, (row, side))
            assert found["count"] == 3 * WIDTH
            assert found["mean"] == pytest.approx(values.mean(), abs=1e-5)
            assert found["max"] == values.max()


def test_a_provider_that_is_not_installed() -> None:
    """The provider must be one that ONNX Runtime was built with; the error names those that there are, and the remedy."""
    check_installed("cpu", ["CPUExecutionProvider"])
    check_installed("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ArtifactError, match="no provider cuda, only AzureExecutionProvider, CPUExecutionProvider; install onnx"):
        check_installed("cuda", ["AzureExecutionProvider", "CPUExecutionProvider"])


def test_a_provider_that_does_not_start() -> None:
    """A session that has only the CPU, though CUDA was asked for, is an error with its remedy, not a slow service."""
    check_started("cpu", ["CPUExecutionProvider"])
    check_started("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(
        ArtifactError, match=r"not start its provider cuda, and would run on CPUExecutionProvider; .*CUDA and cuDNN"
    ):
        check_started("cuda", ["CPUExecutionProvider"])


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="a build with CUDA")
def test_loading_checks_the_provider(tmp_path: Path) -> None:
    """Where the provider of the settings is missing, no session is made."""
    artifact = large(tmp_path)
    with pytest.raises(ArtifactError, match="no provider cuda"):
        Session(prepare(artifact, "cuda"), 1)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="a build with CUDA")
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider':UserWarning")
def test_loading_checks_what_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ONNX Runtime names the provider, yet makes a session for the CPU alone, that session is not used."""
    artifact = large(tmp_path)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ArtifactError, match="could not start its provider cuda"):
        Session(prepare(artifact, "cuda"), 1)


_TOKENS = {"input_ids": np.array([[2, 9, 31, 7], [2, 5, 0, 0]]), "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]])}


def _encoder(watched: bool) -> tuple[Artifact, PreparedGraph]:
    """The shipped one, with statistics or without."""
    artifact = load_artifact(SHIPPED / "encoder" / "1")
    layout = SideLayout(tuple(artifact.manifest.layers))
    return artifact, prepare(artifact, "cpu", *((layout.reductions, layout.pairs) if watched else ()))


@pytest.mark.parametrize("watched", [False, True])
def test_a_classifier_makes_its_scores_in_its_run(watched: bool) -> None:
    """With statistics and without, they are those that are made of its output otherwise."""
    result = Session(_encoder(watched)[1], 1).run(_TOKENS)
    assert result.scored is not None
    scores, ranking = result.scored
    np.testing.assert_allclose(scores, softmax(result.outputs[0]), rtol=1e-12)
    np.testing.assert_array_equal(ranking, rank(result.outputs[0]))


@pytest.mark.parametrize("watched", [False, True])
def test_attention_of_the_shipped_encoder_is_one_operator(watched: bool) -> None:
    """In all its blocks, with statistics and without: the logits are those of the graph in its file."""
    artifact, prepared = _encoder(watched)
    assert isinstance(prepared.model, bytes)
    operators = [node.op_type for node in onnx.load_from_string(prepared.model).graph.node]
    blocks = sum(node.op_type == "Softmax" for node in onnx.load(artifact.model_path).graph.node)
    assert operators.count("Attention") == blocks > 0
    session = onnxruntime.InferenceSession(artifact.model_path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(["logits"], _TOKENS)
    np.testing.assert_allclose(Session(prepared, 1).run(_TOKENS).outputs[0], expected, rtol=1e-4, atol=1e-5)
