"""KLL sketches in the form in which Apache DataSketches writes them, many of one shape at once, as arrays.

The library reads, merges and sorts every sketch on its own. Those of quantities that have one value in every request are of one
shape; merging and sorting them as arrays takes a fraction of that time. Others are left to the library. Knows no storage.

Source: Karnin, Lang & Liberty 2016, "Optimal Quantile Approximation in Streams"; the form is what the library's `serialize` writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.statistics.moments import Floats

Words = NDArray[np.uint32]
Items = NDArray[np.float32]

_NARROWEST = 8  # items that a level has room for, at least
_MOST_LEVELS = 60
_SORTED = 1 << 25  # a flag in the first word: of the lowest level, whose order says nothing
_EMPTY, _SINGLE, _FULL = 0x010F0102, 0x040F0202, 0x000F0105  # the first word: flags, family 15, version 1, words before the levels
_LEVEL_BITS = np.int64(63)
_AT_ONCE = 256  # items of a level that are sorted together, about: numpy sorts short rows several times faster


class UnevenError(ValueError):
    """The sketches are not of one shape, or are broken: the library knows."""


@dataclass(frozen=True)
class EvenSketches:
    """Q sketches that have taken in equally many values, in the same way.

    Attributes:
        count: of the values.
        levels: an item of level l stands for 2^l values, (Q, items) each; sorted but for the lowest level.
        low: the least value, (Q,); infinite without values.
        high: the greatest.
    """

    count: int
    levels: tuple[Items, ...]
    low: Items
    high: Items

    @classmethod
    def of_words(cls, words: Words, k: int) -> Self:
        """Reads sketches of accuracy k, (Q, words of each); at least one.

        Raises:
            UnevenError: they are not of one shape, or not in the form.
        """
        width, first = words.shape[1], [*words[0].tolist(), 0, 0]
        levels = first[4] >> 16 if width > 6 else 0
        head = 5 + levels if levels else 2
        alike = (words[:, 1:head] == words[0, 1:head]).all() and ((words[:, :1] | _SORTED) == first[0] | _SORTED).all()
        kind = first[0] & ~_SORTED
        if not alike or first[1] != _NARROWEST << 16 | k:
            raise UnevenError("sketches of several shapes")
        if (width, kind) == (2, _EMPTY & ~_SORTED):
            none = np.empty(len(words), np.float32)
            return cls(0, (), np.full_like(none, np.inf), np.full_like(none, -np.inf))
        values = words[:, head:].view("<f4")
        if (width, kind) == (3, _SINGLE & ~_SORTED):
            return cls(1, (values,), values[:, 0], values[:, 0])
        items, count = width - head - 2, first[2] | first[3] << 32
        starts = [start + items - sum(_rooms(k, levels)) for start in first[5:head]] if 0 < levels <= _MOST_LEVELS else [-1]
        sizes = [end - start for start, end in pairwise([*starts, items])]
        whole = sum(size << level for level, size in enumerate(sizes)) == count
        if kind != _FULL or first[4] & 0xFFFF != k or starts[0] != 0 or min(sizes) < 0 or not whole:
            raise UnevenError("sketches that are none")
        kept = values[:, 2:]
        return cls(count, tuple(kept[:, a:b] for a, b in pairwise([*starts, items])), values[:, 0], values[:, 1])

    def to_words(self, k: int) -> Words:
        """The inverse."""
        one, levels = _NARROWEST << 16 | k, len(self.levels)
        if self.count == 0:
            return np.tile(np.array([_EMPTY, one], "<u4"), (len(self.low), 1))
        sizes = [items.shape[1] for items in self.levels]
        head = [_SINGLE, one]
        body = [*self.levels]
        if self.count > 1:
            starts = np.cumsum([sum(_rooms(k, levels)) - sum(sizes), *sizes[:-1]]).tolist()
            head = [_FULL, one, self.count & 0xFFFFFFFF, self.count >> 32, levels << 16 | k, *starts]
            body = [self.low[:, None], self.high[:, None], *body]
        words = np.empty((len(self.low), len(head) + sum(each.shape[1] for each in body)), "<u4")
        words[:, : len(head)] = head
        np.concatenate(body, axis=1, out=words[:, len(head) :].view("<f4"))
        return words

    @classmethod
    def merged(cls, parts: Sequence["EvenSketches"], k: int) -> Self:
        """All values of all parts, at least one, each of the same Q quantities."""
        rng = np.random.default_rng()
        waiting: list[list[Items]] = []  # of each level
        for part in parts:
            waiting += [[] for _ in part.levels[len(waiting) :]]
            for level, items in zip(waiting, part.levels, strict=False):
                level.append(items)
            if max(sum(items.shape[1] for items in level) for level in waiting or [[]]) > _AT_ONCE:
                waiting = [[items] for items in _compacted(waiting, k, rng)]
        levels = _compacted(waiting, k, rng)
        for items in levels:
            items.sort(axis=1)
        low, high = np.minimum.reduce([part.low for part in parts]), np.maximum.reduce([part.high for part in parts])
        return cls(sum(part.count for part in parts), tuple(levels), low, high)

    def quantiles(self, ranks: Sequence[float] | Floats) -> Floats:
        """The values at these ranks (0..1), (Q, len(ranks)); exact at 0 and 1; NaN without values."""
        found = np.full((len(self.low), len(ranks)), np.nan)
        if not self.count:
            return found
        # float64 has bits to spare for float32: the level is sorted along in them
        bits = np.concatenate(self.levels, axis=1).astype(np.float64).view(np.int64)
        bits |= np.repeat(np.arange(len(self.levels)), [items.shape[1] for items in self.levels])
        bits.view(np.float64).sort(axis=1)
        values, counted = (bits & ~_LEVEL_BITS).view(np.float64), np.left_shift(1, bits & _LEVEL_BITS).cumsum(axis=1)
        rows = np.arange(len(bits))
        for i, rank in enumerate(ranks):
            if rank in (0, 1):
                found[:, i] = self.low if rank == 0 else self.high
            else:
                found[:, i] = values[rows, (counted < ceil(rank * self.count)).sum(axis=1)]
        return found


def _rooms(k: int, levels: int) -> list[int]:
    """Number of items for which each level has room, the lowest first."""
    return [max(_NARROWEST, ((2 * k << depth) // 3**depth + 1) >> 1) for depth in range(levels)][::-1]


def _compacted(waiting: Sequence[Sequence[Items]], k: int, rng: np.random.Generator) -> list[Items]:
    """Makes room from below: a level that has none leaves every second item to the next, the odd or the even ones by chance."""
    levels = [np.concatenate(items, axis=1) for items in waiting]
    level = 0
    while sum(items.shape[1] for items in levels) > sum(rooms := _rooms(k, len(levels))):
        items = levels[level]
        if items.shape[1] > rooms[level]:
            items.sort(axis=1)
            left = items.shape[1] % 2
            odd = rng.integers(0, 2, (len(items), 1), dtype=np.uint8) == 1
            above = np.where(odd, items[:, left + 1 :: 2], items[:, left::2])
            levels[level] = items[:, :left]
            levels[level + 1 :] = [np.concatenate([*levels[level + 1 : level + 2], above], axis=1), *levels[level + 2 :]]
        level += 1
    return levels
