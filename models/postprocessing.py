"""Logits in, scores and their order out; shared by evaluation and service, so that they cannot differ."""

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """exp(z_i) / sum_j exp(z_j) along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    exponents = np.exp(shifted)
    return np.asarray(exponents / exponents.sum(-1, keepdims=True))


def rank(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Classes along the last axis, the best first; of equals the one with the lower index."""
    return np.argsort(-scores, axis=-1, kind="stable")
