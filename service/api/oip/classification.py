"""The classification extension: logits in, the best classes as strings `value:index:label` out. Knows no HTTP."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def classify(logits: NDArray[np.float32], count: int, labels: Sequence[str]) -> list[str]:
    """The `count` best classes of every row of logits (N, classes), or all if there are fewer.

    Returns:
        N x min(count, classes) strings, row by row, the best first; the value has six decimals, as C's `%f` writes it.
    """
    best = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(logits, best, axis=1)
    return [
        f"{value:f}:{index}:{labels[index]}"
        for row, indexes in zip(values.tolist(), best.tolist(), strict=True)
        for value, index in zip(row, indexes, strict=True)
    ]
