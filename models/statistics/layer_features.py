"""Which numbers of a model's statistics tell a strange sample from others, and to which layer each belongs.

With S rows (layer and side) and A adds of L layers these are F = 2 S + 2 A features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.statistics.layers import SideLayout
from models.statistics.moments import Floats

_LEAST_LOG = 1e-30  # the logarithm of less would say more of rounding than of the layer


@dataclass(frozen=True)
class LayerFeatures:
    """Of one model."""

    layout: SideLayout

    def finite(self, values: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether all layers of the samples are finite: bool (N,) of values (N, V)."""
        return np.asarray(~self.broken(values).any(1))

    def of(self, values: NDArray[np.floating]) -> Floats:
        """mean / rms and log std of all rows, then log residual_ratio and cosine of all adds: (N, 2 S + 2 A)."""
        sides, adds = len(self.layout.rows), len(self.layout.adds)
        mean, std, _, ratio, cosine = np.split(values.astype(np.float64), np.cumsum([sides, sides, sides, adds]), axis=1)
        rms = np.hypot(mean, std)
        level = np.divide(mean, rms, out=np.zeros_like(mean), where=rms > 0)
        return np.concatenate([level, np.log(np.maximum(std, _LEAST_LOG)), np.log(np.maximum(ratio, _LEAST_LOG)), cosine], axis=1)

    def by_layer(self, contributions: Floats) -> Floats:
        """Those of features (N, 2 S + 2 A) summed by layer (N, L)."""
        sides = self._layers_of(range(len(self.layout.rows)))
        adds = np.array([self._index[layer.layer] for layer in self.layout.adds], int)
        return _summed(contributions, np.concatenate([sides, sides, adds, adds]), len(self.layout.layers))

    def rows_by_layer(self, distances: Floats, rows: Sequence[int]) -> Floats:
        """Those of rows of the layout (N, R) summed by layer (N, L)."""
        return _summed(distances, self._layers_of(rows), len(self.layout.layers))

    def broken(self, values: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which layers of the samples are not finite: bool (N, L)."""
        sides = len(self.layout.rows)
        known = np.isfinite(values[:, :sides]) & np.isfinite(values[:, sides : 2 * sides])
        return _summed(np.where(known, 0.0, 1.0), self._layers_of(range(sides)), len(self.layout.layers)) > 0

    @cached_property
    def _index(self) -> dict[str, int]:
        return {layer.layer: i for i, layer in enumerate(self.layout.layers)}

    def _layers_of(self, rows: Sequence[int]) -> NDArray[np.intp]:
        return np.array([self._index[self.layout.rows[row][0].layer] for row in rows], int)


def _summed(columns: Floats, group: NDArray[np.intp], groups: int) -> Floats:
    """Columns (N, F) summed by their groups (F,): (N, groups)."""
    return np.asarray(columns @ (group[:, None] == np.arange(groups)).astype(np.float64))
