"""Logits in, scores and their order out, for evaluation and service; `models.instrument.scores` makes the same inside a graph."""

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """exp(z_i) / sum_j exp(z_j) along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    exponents = np.exp(shifted)
    return np.asarray(exponents / exponents.sum(-1, keepdims=True))


def scores_of(outputs: NDArray[np.floating], *, probabilities: bool) -> NDArray[np.float64]:
    """The scores of classes along the last axis, in float64: the softmax of logits; probabilities as they are."""
    return outputs.astype(np.float64) if probabilities else softmax(outputs)


def rank(logits: NDArray[np.floating]) -> NDArray[np.int64]:
    """Classes along the last axis, the best first; of equals the one with the lower index."""
    return np.argsort(-logits, axis=-1, kind="stable")
