"""What a run makes of each input."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.artifact import Manifest
from models.postprocessing import rank, scores_of
from models.statistics.layers import SampleStatistics
from service.engine.inputs import TensorInput


class Outcome(NamedTuple):
    """Of one input.

    Attributes:
        outputs: of the model for this input, without the batch axis; whole where the model has none.
        scores: of the classes, the softmax of their output, float64 (classes,); None where the model has no labels.
        ranking: the classes, the best first, int64 (classes,).
        truncated: whether its text was cut.
        statistics: if they were asked for.
    """

    outputs: tuple[NDArray[Any], ...]
    scores: NDArray[np.float64] | None
    ranking: NDArray[np.int64] | None
    truncated: bool
    statistics: SampleStatistics | None


def outcomes_of(
    manifest: Manifest,
    outputs: Sequence[NDArray[Any]],
    rows: Sequence[TensorInput],
    statistics: Sequence[SampleStatistics | None],
    scored: tuple[NDArray[np.float64], NDArray[np.int64]] | None = None,
) -> list[Outcome]:
    """What a run of these rows makes of each, with its statistics; `scored` are its scores and ranking, if the run made them."""
    if scored is None and manifest.scores_output is not None:
        logits = outputs[manifest.scores_output]
        scored = scores_of(logits, probabilities=manifest.probabilities), rank(logits.astype(np.float64))
    return [
        Outcome(
            tuple([output[i] for output in outputs]) if manifest.batched else tuple(outputs),
            None if scored is None else scored[0][i],
            None if scored is None else scored[1][i],
            row.truncated,
            of_row,
        )
        for i, (row, of_row) in enumerate(zip(rows, statistics, strict=True))
    ]
