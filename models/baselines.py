"""Published scores of how strange an input is to a classifier, which the layers' score is compared with: numbers in, one out each.

All read the end of the network only: the scores of the classes, or the last features, which these are a linear function of. Higher
is stranger.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from models.instrument.graph import Graph
from models.postprocessing import softmax

Floats = NDArray[np.float64]
_LINEAR = ("Gemm", "MatMul")


def last_features(model: onnx.ModelProto, scores: str) -> str | None:
    """The tensor that the last linear layer before `scores` reads; None where something else than a bias lies between them."""
    graph = Graph(model)
    tensor = scores
    while (node := graph.producer(tensor)) is not None:
        computed = [name for name in node.input if name and not graph.is_constant(name)]
        if len(computed) != 1:
            return None
        if node.op_type in _LINEAR:
            return computed[0]
        if node.op_type not in ("Add", "Identity", "Cast", "Softmax", "LogSoftmax"):
            return None
        (tensor,) = computed
    return None


def largest_probability(logits: NDArray[np.float32]) -> Floats:
    """Minus the largest softmax probability, (n, classes) -> (n,).

    Source: Hendrycks & Gimpel 2017, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples" (arXiv:1610.02136).
    """
    return np.asarray(-softmax(logits).max(1))


def energy(logits: NDArray[np.float32]) -> Floats:
    """-log sum_j exp(z_j), (n, classes) -> (n,).

    Source: Liu et al. 2020, "Energy-based Out-of-distribution Detection" (arXiv:2010.03759), equation 4 with T = 1.
    """
    z = logits.astype(np.float64)
    largest = z.max(1)
    return np.asarray(-(largest + np.log(np.exp(z - largest[:, None]).sum(1))))


@dataclass(frozen=True)
class Mahalanobis:
    """Squared distance of the features to the nearest class, in units of the covariance that all classes share.

    Without the small changes of the input and the other layers of the paper: these are what it adds for one known shift.

    Source: Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks"
    (arXiv:1807.03888), equations 1 and 2.

    Attributes:
        means: float64 (K, D), of the classes.
        precision: float64 (D, D), pseudo-inverse of the covariance.
    """

    means: Floats
    precision: Floats

    @classmethod
    def fit(cls, features: NDArray[np.float32], labels: NDArray[np.int64]) -> "Mahalanobis":
        """From training data: features (n, D) and their classes (n,)."""
        x = features.astype(np.float64)
        classes, index = np.unique(labels, return_inverse=True)
        means = np.stack([x[index == k].mean(0) for k in range(len(classes))])
        centred = x - means[index]
        return cls(means, np.linalg.pinv(centred.T @ centred / len(x), hermitian=True))

    def score(self, features: NDArray[np.float32]) -> Floats:
        """(n, D) -> (n,)."""
        x = features.astype(np.float64)
        projected = x @ self.precision
        to_mean = self.means @ self.precision  # (K, D)
        squares = (projected * x).sum(1)[:, None] - 2 * projected @ self.means.T + (to_mean * self.means).sum(1)
        return np.asarray(squares.min(1))


@dataclass(frozen=True)
class NearestNeighbour:
    """Distance of the features, each scaled to length 1, to the k-th nearest of the training data.

    Source: Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors" (arXiv:2204.06507), section 3.

    Attributes:
        known: float64 (n, D), of length 1.
        k: which neighbour counts; at most n.
    """

    known: Floats
    k: int

    @classmethod
    def fit(cls, features: NDArray[np.float32], k: int) -> "NearestNeighbour":
        """From training data: features (n, D)."""
        return cls(_of_length_one(features), min(k, len(features)))

    def score(self, features: NDArray[np.float32]) -> Floats:
        """(n, D) -> (n,)."""
        cosine = _of_length_one(features) @ self.known.T
        nearest = -np.partition(-cosine, self.k - 1, axis=1)[:, self.k - 1]
        return np.asarray(np.sqrt(np.maximum(2 - 2 * nearest, 0)))


def _of_length_one(features: NDArray[np.float32]) -> Floats:
    x = features.astype(np.float64)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny))
