"""Scores made inside a graph: those of `models.postprocessing`."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.instrument.scores import RANKING, SCORES, add_scores, holds_probabilities
from models.postprocessing import rank, scores_of, softmax
from tests.graphs import graph_of

_CLASSES = 151


def copier(kind: int = TensorProto.FLOAT, shape: tuple[int | str, ...] = ("batch", _CLASSES), opset: int = 17) -> onnx.ModelProto:
    """y = x, so that the test chooses the logits."""
    return graph_of([helper.make_node("Identity", ["x"], ["y"])], {"x": (kind, shape)}, {"y": (kind, shape)}, opset=opset)


def run(model: onnx.ModelProto, logits: NDArray[Any]) -> list[NDArray[Any]]:
    """Its output, and what was added."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(["y", SCORES, RANKING], {"x": logits}))


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("scale", [0.01, 1, 30, 1e4])
def test_scores_and_order_are_those_of_postprocessing(opset: int, scale: float) -> None:
    """For logits of any size, with equals among them, in every form that the operators have had."""
    logits = np.random.default_rng(0).normal(size=(9, _CLASSES)).astype(np.float32) * np.float32(scale)
    logits[:, 7] = logits[:, -1] = logits[:, 3]
    logits[4] = 0
    model = copier(opset=opset)
    assert add_scores(model, "y")
    outputs, scores, ranking = run(model, logits)
    expected = softmax(logits)
    np.testing.assert_array_equal(outputs, logits)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_array_equal(ranking, rank(logits))
    assert (ranking[4] == np.arange(_CLASSES)).all()


def test_probabilities_are_the_scores() -> None:
    """As they are, and in their order."""
    values = np.random.default_rng(0).uniform(size=(4, _CLASSES)).astype(np.float32)
    model = copier()
    assert add_scores(model, "y", probabilities=True)
    _, scores, ranking = run(model, values)
    np.testing.assert_array_equal(scores, scores_of(values, probabilities=True))
    np.testing.assert_array_equal(scores, values.astype(np.float64))
    np.testing.assert_array_equal(ranking, rank(values))


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        (["Softmax"], True),
        (["Sigmoid"], True),
        (["Softmax", "Identity", "Flatten"], True),
        (["LogSoftmax"], False),
        (["Softmax", "Neg"], False),
        (["Identity"], False),
    ],
)
def test_what_holds_probabilities_is_seen_in_the_graph(operators: list[str], expected: bool) -> None:
    """The last operator that changes a number tells; what a logarithm follows are logits."""
    names = ["x", *(f"t{i}" for i in range(len(operators) - 1)), "y"]
    nodes = [helper.make_node(kind, [names[i]], [names[i + 1]]) for i, kind in enumerate(operators)]
    shape = ("batch", _CLASSES)
    assert (
        holds_probabilities(graph_of(nodes, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)}), "y") is expected
    )


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 151])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_equals_keep_their_order_in_any_batch(classes: int, rows: int) -> None:
    """Logits of four values, so that nearly all have equals: the lower index is first, whatever else is in the batch."""
    model = copier(shape=("batch", classes))
    assert add_scores(model, "y")
    for seed in range(40):
        logits = np.random.default_rng(seed).choice(np.array([-1.19, 0.1, 0.57, 2.3], np.float32), (rows, classes))
        np.testing.assert_array_equal(run(model, logits)[2], rank(logits))


@pytest.mark.parametrize("declared", [-1, 3, 6, "classes"])
def test_the_number_of_classes_is_that_of_the_run(declared: int | str) -> None:
    """A graph may declare another one, or none."""
    model = copier(shape=("batch", 5))
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", declared])
    model.graph.output[0].CopyFrom(value)
    assert add_scores(model, "y")
    logits = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    _, scores, ranking = run(model, logits)
    np.testing.assert_allclose(scores, softmax(logits))
    np.testing.assert_array_equal(ranking, rank(logits))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_a_number_spoils_its_own_row_alone(broken: float) -> None:
    """As in numpy a row with a NaN or an infinity has no scores; its order still names every class once."""
    logits = np.random.default_rng(0).normal(size=(3, _CLASSES)).astype(np.float32)
    logits[1, 60] = broken
    model = copier()
    assert add_scores(model, "y")
    _, scores, ranking = run(model, logits)
    np.testing.assert_allclose(scores[[0, 2]], softmax(logits[[0, 2]]))
    assert np.isnan(scores[1]).all()
    assert sorted(ranking[1]) == list(range(_CLASSES))


@pytest.mark.parametrize(("kind", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)])
def test_logits_of_other_types_and_shapes(kind: int, dtype: type[np.floating]) -> None:
    """The classes lie along the last axis, whatever is before it."""
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(dtype)
    model = copier(kind, ("batch", "length", 5))
    assert add_scores(model, "y")
    _, scores, ranking = run(model, logits)
    np.testing.assert_allclose(scores, softmax(logits.astype(np.float32)), rtol=1e-6)
    np.testing.assert_array_equal(ranking, rank(logits))


@pytest.mark.parametrize(
    "model",
    [
        copier(opset=10),
        copier(TensorProto.INT64),
        copier(shape=()),
    ],
    ids=["old", "whole numbers", "one number"],
)
def test_other_outputs_are_left_alone(model: onnx.ModelProto) -> None:
    """Their scores are made after the run; the graph is not touched."""
    before = model.SerializeToString()
    assert not add_scores(model, "y")
    assert model.SerializeToString() == before
