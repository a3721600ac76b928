"""Published scores, compared with their formulas written out in numpy sample by sample, and the features that they read."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.baselines import Mahalanobis, NearestNeighbour, energy, largest_probability, last_features
from tests import graphs


def samples(n: int, width: int = 5, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers (n, width)."""
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def test_largest_probability_and_energy() -> None:
    """As torch's softmax and logsumexp in float64 say, also of logits in the thousands."""
    logits = np.concatenate([samples(20) * 4, [[5000, -5000, 0, 0, 0]]]).astype(np.float32)
    z = torch.from_numpy(logits).double()
    np.testing.assert_allclose(largest_probability(logits), -z.softmax(1).amax(1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(energy(logits), -z.logsumexp(1).numpy(), rtol=1e-12)


def test_mahalanobis_is_the_distance_to_the_nearest_class() -> None:
    """Means by class, one covariance of all distances to them, the smallest distance of each sample."""
    known, labels = samples(60) * [1, 2, 3, 4, 5], np.arange(60) % 3
    known[labels == 1] += 4
    means = [known[labels == k].mean(0) for k in range(3)]
    covariance = sum(np.outer(row - means[k], row - means[k]) for row, k in zip(known, labels, strict=True)) / 60
    inverse = np.linalg.inv(covariance)
    asked = samples(7, seed=1)
    expected = [min((row - mean) @ inverse @ (row - mean) for mean in means) for row in asked]
    fitted = Mahalanobis.fit(known.astype(np.float32), labels)
    np.testing.assert_allclose(fitted.score(asked), expected, rtol=1e-4)


def test_mahalanobis_of_features_that_do_not_vary() -> None:
    """A feature that is constant in the training data has no inverse variance; the score stays finite."""
    known = samples(30)
    known[:, 2] = 1
    assert np.isfinite(Mahalanobis.fit(known, np.arange(30) % 2).score(samples(4))).all()


@pytest.mark.parametrize("k", [1, 3, 30, 99])
def test_nearest_neighbour_is_the_kth_distance(k: int) -> None:
    """Of the features scaled to length 1; where there are fewer than k, of the farthest."""
    known, asked = samples(30), samples(6, seed=1)
    unit, rows = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (known, asked))
    expected = [sorted(np.linalg.norm(row - each) for each in unit)[min(k, 30) - 1] for row in rows]
    np.testing.assert_allclose(NearestNeighbour.fit(known, k).score(asked), expected, atol=1e-6)


def test_features_of_zeros_have_a_distance() -> None:
    """Nothing is divided by their length."""
    assert np.isfinite(NearestNeighbour.fit(samples(5), 1).score(np.zeros((1, 5), np.float32))).all()


def classifier(*end: onnx.NodeProto) -> onnx.ModelProto:
    """x (batch, 8) -> h = relu(x W) -> the nodes at its end -> y."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["h"]), *end]
    constants: dict[str, NDArray[Any]] = {
        "w": graphs.weights(8, 8),
        "b": graphs.weights(8),
        "half": graphs.weights(8, 8).astype(np.float16),
    }
    return graphs.graph_of(nodes, {"x": (TensorProto.FLOAT, ["batch", 8])}, {"y": (TensorProto.FLOAT, ["batch", 8])}, constants)


def test_last_features_are_what_the_last_linear_layer_reads() -> None:
    """With its bias inside or added, weights stored as float16, and a softmax behind it."""
    node = helper.make_node
    assert last_features(classifier(node("Gemm", ["h", "w", "b"], ["y"])), "y") == "h"
    added = classifier(node("MatMul", ["h", "w"], ["p"]), node("Add", ["p", "b"], ["s"]), node("Softmax", ["s"], ["y"]))
    assert last_features(added, "y") == "h"
    cast = classifier(node("Cast", ["half"], ["v"], to=TensorProto.FLOAT), node("MatMul", ["h", "v"], ["y"]))
    assert last_features(cast, "y") == "h"


def test_scores_of_no_linear_layer_have_no_last_features() -> None:
    """A nonlinear operator between, or scores of two paths: there is nothing that they are a linear function of."""
    node = helper.make_node
    assert last_features(classifier(node("Gemm", ["h", "w", "b"], ["p"]), node("Relu", ["p"], ["y"])), "y") is None
    assert last_features(classifier(node("Gemm", ["h", "w", "b"], ["p"]), node("Add", ["p", "h"], ["y"])), "y") is None
    assert last_features(classifier(node("MatMul", ["h", "a"], ["y"])), "y") is None
