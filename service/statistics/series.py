"""What is told apart in storage: one set of weights of one model version, and the order of everything that is counted in it."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from models.artifact import MODEL, Manifest
from models.statistics.layers import SideLayout
from models.statistics.request_values import ADD_VALUES, SIDE_VALUES, value_count


@dataclass(frozen=True)
class Series:
    """The statistics of one model version.

    A retrained model under an old version is another series: the statistics of different weights do not mix.

    Attributes:
        fingerprint: of the weights and the layout; the same in every replica and after a restart.
    """

    model: str
    version: str
    fingerprint: str
    layout: SideLayout

    @classmethod
    def of(cls, manifest: Manifest, layout: SideLayout) -> "Series":
        identity = [manifest.name, manifest.version, manifest.files.get(MODEL), [(row.layer, side) for row, side in layout.rows]]
        fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        return cls(manifest.name, manifest.version, fingerprint, layout)

    @cached_property
    def sides(self) -> int:
        """S, the number of rows (layer and side)."""
        return len(self.layout.rows)

    @cached_property
    def adds(self) -> int:
        """A, the number of residual adds."""
        return len(self.layout.adds)

    @property
    def values(self) -> int:
        """V, the number of quantities that every request has one value of."""
        return value_count(self.sides, self.adds)

    def value_of(self, name: str, index: int) -> int:
        """The column of a quantity: of row `index` for mean, std and l2, of add `index` for residual_ratio and cosine."""
        if name in SIDE_VALUES:
            return SIDE_VALUES.index(name) * self.sides + index
        return len(SIDE_VALUES) * self.sides + ADD_VALUES.index(name) * self.adds + index
