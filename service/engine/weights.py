"""The weights of the graphs of one model, each in memory once: arrays by name in, what its sessions read in place out."""

import hashlib
from collections.abc import Mapping

import numpy as np
import onnxruntime
from numpy.typing import NDArray


class Weights:
    """Holds what it is given as long as it lives; sessions keep what they read."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, tuple[int, ...], bytes], onnxruntime.OrtValue] = {}

    def hold(self, weights: Mapping[str, NDArray[np.floating]]) -> dict[str, onnxruntime.OrtValue]:
        """Those of a graph by name; one that is equal to another, of this graph or of one before, is the same."""
        held = {}
        for name, weight in weights.items():
            key = (str(weight.dtype), weight.shape, hashlib.sha256(np.ascontiguousarray(weight).data).digest())
            if key not in self._held:
                self._held[key] = onnxruntime.OrtValue.ortvalue_from_numpy(weight)
            held[name] = self._held[key]
        return held
