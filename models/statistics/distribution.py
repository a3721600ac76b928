"""How the elements of one tensor are distributed: one sample in, histogram and quantiles out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 64
PERCENTS = (1, 5, 25, 50, 75, 95, 99)
"""The quantiles that are told."""
VALUES = 2 * BINS + 1 + len(PERCENTS)
"""Numbers in the description of one tensor."""


def distribution(x: NDArray[np.floating]) -> dict[str, Any]:
    """Histogram (bins of one width, from the smallest element to the largest) and quantiles of one sample; null where not finite.

    A sample of equal elements gets a range of its own, so that its bins have a width.

    Args:
        x: floating, any shape.
    """
    values = x.astype(np.float64).ravel()
    if not values.size or not np.isfinite(values).all():
        return {"histogram": None, "quantiles": None}
    low, high = float(values.min()), float(values.max())
    spacing = BINS * float(np.spacing(max(abs(low), abs(high))))
    margin = max(spacing, 0.5) if low == high else spacing if high - low < spacing else 0.0
    counts, edges = np.histogram(values, BINS, (low - margin, high + margin))
    quantiles = np.quantile(values, np.array(PERCENTS) / 100).tolist()
    return {
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "quantiles": {str(percent): value for percent, value in zip(PERCENTS, quantiles, strict=True)},
    }
