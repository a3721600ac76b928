"""Quantile sketches of many quantities at once: values of single requests in, quantiles and distribution functions out; mergeable.

KLL sketches of Apache DataSketches. Source: Karnin, Lang & Liberty 2016, "Optimal Quantile Approximation in Streams".
"""

import zlib
from collections.abc import Sequence
from typing import Self

import numpy as np
from datasketches import vector_of_kll_floats_sketches
from numpy.typing import NDArray

from models.statistics.moments import Floats

K = 128
"""Accuracy: a rank is off by at most 2.1 % (a count between two values by 2.6 %) with 99 % probability; up to 128 values are exact.

A sketch takes at most 1.5 kB, and half the error would take twice that for each layer, side, statistic and minute.
"""

_EMPTY_BYTES, _FULL_BYTES = 650, 2050
_LENGTH = np.dtype("<u4")
_MARK, _HEAD = b"\xff" * 4, 8  # what begins with a checksum; no sketch is so long


def sketch_bytes(values: int) -> int:
    """Memory that a sketch of so many values takes, about; as measured."""
    return min(_EMPTY_BYTES + 4 * values, _FULL_BYTES)


class Sketches:
    """One sketch for each of V quantities."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._vector = vector_of_kll_floats_sketches(K, max(size, 1))  # a model without layers has no quantities, the library no 0

    def update(self, values: Floats) -> None:
        """Takes the values (N, V) of N requests; NaN is left out. Values are kept as float32."""
        if not self.size:
            return
        with np.errstate(over="ignore"):
            known = np.where(np.isfinite(values), values, np.nan).astype(np.float32)
        self._vector.update(known)

    def merge(self, other: "Sketches") -> None:
        """Takes in all values of another of the same size.

        Raises:
            ValueError: that is broken, which reading it has not shown.
        """
        try:
            self._vector.merge(other._vector)
        except RuntimeError as error:  # of the library
            raise ValueError(f"broken sketches: {error}") from error

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of values of each quantity, (V,)."""
        return np.asarray(self._vector.get_n(), dtype=np.int64)[: self.size]

    def quantiles(self, ranks: Sequence[float] | Floats) -> Floats:
        """The values at these ranks (0..1), (V, len(ranks)); exact at 0 and 1; NaN for quantities without values."""
        levels = np.asarray(ranks, dtype=np.float64)
        if not self.size:
            return np.empty((0, len(levels)))
        known = np.flatnonzero(self.counts)
        if len(known) < self.size:  # the library has no answer for an empty sketch
            found = np.full((self.size, len(levels)), np.nan)
            if len(known):
                found[known] = self.choose(known.tolist()).quantiles(levels)
            return found
        found = np.asarray(self._vector.get_quantiles(levels), dtype=np.float64)
        # known exactly, and not always among the values that a sketch has kept
        found[:, levels == 0] = np.asarray(self._vector.get_min_values())[:, None]
        found[:, levels == 1] = np.asarray(self._vector.get_max_values())[:, None]
        return found

    def shares(self, quantity: int, edges: Floats) -> Floats:
        """Of the values of one quantity, the shares up to the first edge, between edges, above the last: (len(edges) + 1,).

        Edges rise strictly; the quantity has values. A value that equals an edge counts below it.
        """
        below = np.nextafter(edges.astype(np.float32), np.float32(np.inf))  # the library counts an equal value above
        return np.asarray(self._vector.get_pmf(below, quantity), dtype=np.float64).reshape(-1)

    def choose(self, chosen: Sequence[int]) -> Self:
        """Copies of the sketches of some quantities, in their order."""
        parts = self.serialized()
        return self._of([parts[each] for each in chosen])

    def to_bytes(self) -> bytes:
        """A mark, the CRC-32 of what follows, uint32 lengths of all sketches, and the sketches in the library's own form."""
        return joined(self.serialized())

    def serialized(self) -> list[bytes]:
        """The sketches in the library's own form."""
        return list(self._vector.serialize()[: self.size])

    @classmethod
    def from_bytes(cls, blob: bytes, size: int, chosen: Sequence[int] | None = None) -> Self:
        """The inverse; of `size` sketches in the blob only the chosen ones, in their order.

        Raises:
            ValueError: the blob was not written for so many, or is broken.
        """
        lengths, ends = places(blob, size)
        wanted = range(size) if chosen is None else chosen
        return cls._of([blob[ends[each] - lengths[each] : ends[each]] for each in wanted])

    @classmethod
    def _of(cls, parts: Sequence[bytes]) -> Self:
        """Of sketches in the library's own form; ValueError where one is broken."""
        sketches = cls(len(parts))
        try:
            for i, part in enumerate(parts):
                sketches._vector.deserialize(part, i)
        except (IndexError, RuntimeError) as error:  # of the library, beside ValueError
            raise ValueError(f"broken sketches: {error}") from error
        return sketches


def places(blob: bytes, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths in bytes of the sketches in `Sketches.to_bytes`, and where they end.

    Raises:
        ValueError: it was not written for so many, or is broken.
    """
    start = _HEAD if blob.startswith(_MARK) else 0  # without it: written before there were checksums
    lengths = np.frombuffer(blob, _LENGTH, size, start).astype(np.int64)
    ends = lengths.cumsum() + start + size * _LENGTH.itemsize
    expected = int(ends[-1]) if size else start
    if expected != len(blob):
        raise ValueError(f"{len(blob)} bytes of sketches, {expected} expected")
    # the library trusts what it reads: a wrong byte may end the process
    if start and zlib.crc32(memoryview(blob)[start:]) != int.from_bytes(blob[len(_MARK) : start], "little"):
        raise ValueError("broken sketches: their checksum is another")
    return lengths, ends


def joined(parts: Sequence[bytes]) -> bytes:
    """`Sketches.to_bytes` of sketches in the library's own form."""
    content = np.array([len(part) for part in parts], _LENGTH).tobytes() + b"".join(parts)
    return _MARK + zlib.crc32(content).to_bytes(_HEAD - len(_MARK), "little") + content
