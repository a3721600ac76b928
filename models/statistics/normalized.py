"""The normalized value, before gamma scales and beta shifts it: a tensor and a formula in, the tensor's middle stage out."""

import numpy as np
from numpy.typing import NDArray

from models.instrument.formulas import Formula


def normalize(x: NDArray[np.floating], formula: Formula) -> NDArray[np.float64]:
    """(x - mu) / sqrt(sigma^2 + epsilon) of x (N, ...), each sample by itself; what is not finite spreads as far as mu does.

    Source: Wu & He 2018 (arXiv:1803.08494, equations 1 to 4); for an RMS norm Zhang & Sennrich 2019 (arXiv:1910.07467, equation 4).
    """
    values = x.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        if formula.mean is not None and formula.var is not None:
            shape = (1, -1) + (1,) * (x.ndim - 2)
            centred, var = values - formula.mean.reshape(shape), formula.var.reshape(shape)
            return np.asarray(centred / np.sqrt(var + formula.epsilon))
        axes = formula.axes
        if formula.groups:
            values, axes = values.reshape(len(x), formula.groups, -1), (2,)
        centred = values - values.mean(axes, keepdims=True) if formula.centred else values
        normalized = centred / np.sqrt(np.square(centred).mean(axes, keepdims=True) + formula.epsilon)
    return np.asarray(normalized).reshape(x.shape)
