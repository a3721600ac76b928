"""Sketches as they are stored, merged and asked for quantiles without reading each of them: all of one shape at once, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.statistics.moments import Floats
from service.statistics.kll import EvenSketches, UnevenError, Words
from service.statistics.sketches import K, Sketches, joined, places

_FEW = 4  # quantities for which arrays are not worth while


def merge_stored(blobs: Sequence[bytes], size: int, chosen: Sequence[int] | None = None) -> bytes:
    """All values of some `Sketches.to_bytes`, each of `size` quantities; of the chosen ones alone, in their order.

    Raises:
        ValueError: a blob was not written for so many, or is broken.
    """
    if not blobs:
        return Sketches(size if chosen is None else len(chosen)).to_bytes()
    shapes = _Shapes.of(blobs, size, chosen)
    merged: list[bytes] = [b""] * shapes.quantities
    for positions, parts in shapes.even:
        for position, words in zip(positions, EvenSketches.merged(parts, K).to_words(K), strict=True):
            merged[position] = words.tobytes()
    if shapes.others:
        total = Sketches(len(shapes.others))
        for blob in blobs:
            total.merge(Sketches.from_bytes(blob, size, shapes.named(shapes.others)))
        for position, part in zip(shapes.others, total.serialized(), strict=True):
            merged[position] = part
    return joined(merged)


def stored_quantiles(blob: bytes, size: int, chosen: Sequence[int], ranks: Sequence[float]) -> Floats:
    """`Sketches.quantiles` of the chosen ones of `size` quantities in `Sketches.to_bytes`.

    Raises:
        ValueError: it was not written for so many, or is broken.
    """
    shapes = _Shapes.of([blob], size, chosen)
    found = np.empty((len(chosen), len(ranks)))
    for positions, (part,) in shapes.even:
        found[positions] = part.quantiles(ranks)
    if shapes.others:
        found[shapes.others] = Sketches.from_bytes(blob, size, shapes.named(shapes.others)).quantiles(ranks)
    return found


@dataclass(frozen=True)
class _Shapes:
    """Chosen quantities of some blobs, put together where their sketches are of one shape in each.

    Attributes:
        chosen: the quantities.
        even: positions among them, and their sketches in each blob.
        others: positions of those that the library has to read.
    """

    chosen: NDArray[np.int64]
    even: list[tuple[list[int], list[EvenSketches]]]
    others: list[int]

    @property
    def quantities(self) -> int:
        return len(self.chosen)

    def named(self, positions: Sequence[int]) -> list[int]:
        """The quantities at these positions."""
        return [int(each) for each in self.chosen[list(positions)]]

    @classmethod
    def of(cls, blobs: Sequence[bytes], size: int, chosen: Sequence[int] | None) -> Self:
        wanted = np.arange(size) if chosen is None else np.array(chosen, np.int64)
        tables, widths = [], []
        for blob in blobs:
            lengths, ends = places(blob, size)
            if (lengths % 4).any():
                return cls(wanted, [], list(range(len(wanted))))
            tables.append((np.frombuffer(blob, "<u4"), (ends - lengths)[wanted] // 4))
            widths.append(lengths[wanted] // 4)
        even: list[tuple[list[int], list[EvenSketches]]] = []
        others: list[int] = []
        for positions in _alike(np.array(widths).reshape(len(blobs), len(wanted))):
            try:
                if len(positions) < _FEW:
                    raise UnevenError("too few")
                parts = [
                    EvenSketches.of_words(_rows(words, starts[positions], int(width[positions[0]])), K)
                    for (words, starts), width in zip(tables, widths, strict=True)
                ]
                even.append((positions, parts))
            except UnevenError:
                others += positions
        return cls(wanted, even, others)


def _alike(widths: NDArray[np.int64]) -> list[list[int]]:
    """Columns that are equal, together."""
    if not widths.size or (widths == widths[:, :1]).all():
        return [list(range(widths.shape[1]))]
    _, group = np.unique(widths, axis=1, return_inverse=True)
    return [np.flatnonzero(group == i).tolist() for i in range(group.max() + 1)]


def _rows(words: Words, starts: NDArray[np.int64], width: int) -> Words:
    """(len(starts), width), from each start on."""
    neighbours = (np.diff(starts) == width).all()
    found: Words = words[starts[0] : starts[0] + len(starts) * width] if neighbours else words[starts[:, None] + np.arange(width)]
    return found.reshape(-1, width)
