"""Pooled windows as columns of numbers, as the API shows them: NaN where a number is undefined. Knows no JSON and no layers."""

import numpy as np

from models.statistics.moments import Floats, Moments
from service.statistics.window import WindowMoments


def side_columns(window: WindowMoments) -> dict[str, Floats]:
    """Of the elements of every side: fields (..., S)."""
    return element_columns(window.elements) | {"nonfinite_samples": window.nonfinite_samples}


def element_columns(moments: Moments) -> dict[str, Floats]:
    """Of groups of elements, whatever their shape."""
    known = np.where(moments.count > 0, 1.0, np.nan)
    var = moments.var * known
    return {
        "count": moments.count,
        "mean": moments.mean * known,
        "var": var,
        "std": np.sqrt(var),
        "min": np.where(moments.count > 0, moments.minimum, np.nan),
        "max": np.where(moments.count > 0, moments.maximum, np.nan),
        "zeros": moments.zeros / np.maximum(moments.count, 1) * known,
        "nonfinite": moments.nonfinite,
    }


def value_columns(values: Moments) -> dict[str, Floats]:
    """Of the values of the single requests, each a quantity's: fields (..., V)."""
    known = values.count > 0
    return {
        "mean": np.where(known, values.mean, np.nan),
        "std": np.where(known, np.sqrt(values.var), np.nan),
        "min": np.where(known, values.minimum, np.nan),
        "max": np.where(known, values.maximum, np.nan),
    }
