"""Sketches of whole hours, days and weeks, merged from those of their windows when somebody asks, and kept for the next who does.

So are quantiles that were asked for. Both are kept by the names of the windows, so that what has changed is never found again.
"""

import logging
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.statistics.moments import Floats
from service.statistics.pending import StoredPart
from service.statistics.retention import DAY_S, HOUR_S
from service.statistics.sketches import Sketches
from service.statistics.stored_sketches import merge_stored, stored_quantiles

_WEEK_S = 7 * DAY_S
_MAX_BYTES = 24 << 20
_MAX_QUANTILE_BYTES = 2 << 20
_KEY_BYTES = 300  # that a name takes, with its place
_Value = TypeVar("_Value")
_log = logging.getLogger("normscope")

Reader = Callable[[Sequence[StoredPart]], Mapping[int, bytes]]
"""Parts in, the stored sketches of each out, by the name of the part."""


@dataclass(frozen=True)
class Group:
    """The sketches of neighbouring windows together.

    Attributes:
        start: of the first window, seconds since 1970.
        name: another one for other windows, and for windows that have grown.
        sketches: as `Sketches.to_bytes`.
    """

    start: int
    name: bytes
    sketches: bytes


def merge_groups(groups: Sequence[Group], size: int, chosen: Sequence[int] | None = None) -> bytes:
    """The sketches of all groups, of `size` quantities or the chosen ones; what cannot be read is left out, with a warning."""
    try:
        return merge_stored([group.sketches for group in groups], size, chosen)
    except ValueError:
        return merge_stored([group.sketches for group in groups if _is_readable(group, size, chosen)], size, chosen)


def _is_readable(group: Group, size: int, chosen: Sequence[int] | None) -> bool:
    try:
        merge_stored([group.sketches] * 2, size, chosen)  # twice, for merging shows what reading does not
    except ValueError as error:
        _log.warning("stored quantiles of the window from %d on cannot be read and are left out: %s", group.start, error)
        return False
    return True


def levels_within(step_s: int | None) -> tuple[int, ...]:
    """Seconds of the groups that steps of this length are made of, rising; all there are without a step."""
    return tuple(level for level in (HOUR_S, DAY_S, _WEEK_S) if step_s is None or step_s % level == 0)


class MergedSketches:
    """Merges, and keeps what was merged last; usable from several threads."""

    def __init__(self, max_bytes: int = _MAX_BYTES, max_quantile_bytes: int = _MAX_QUANTILE_BYTES) -> None:
        self._sketches: _Kept[bytes] = _Kept(max_bytes)
        self._quantiles: _Kept[Floats] = _Kept(max_quantile_bytes)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        return self._sketches.nbytes + self._quantiles.nbytes

    def groups(self, parts: Sequence[StoredPart], levels: Sequence[int], size: int, read: Reader) -> list[Group]:
        """The sketches of all parts with samples, in groups of the last of the levels; of single parts without levels.

        Args:
            parts: in the order of time; what is not stored brings its sketches.
            levels: seconds, each a multiple of those before.
            size: number of quantities.
            read: gives the others.
        """
        sampled = [part for part in parts if part.sampled]
        if levels:
            grouped = [list(each) for _, each in groupby(sampled, key=lambda part: part.start // levels[-1])]
        else:
            grouped = [[part] for part in sampled]
        alone = read([group[0] for group in grouped if len(group) == 1 and group[0].sketches is None])
        return [
            self._merged(group, levels[:-1], size, read)
            if len(group) > 1
            else Group(group[0].start, _name(group), _of(group[0], alone))
            for group in grouped
        ]

    def _merged(self, parts: Sequence[StoredPart], levels: Sequence[int], size: int, read: Reader) -> Group:
        name = _name(parts)
        made = self._sketches.get(name)
        if made is None:
            made = merge_groups(self.groups(parts, levels, size, read), size)
            self._sketches.keep(name, made, len(made))
        return Group(parts[0].start, name, made)

    def quantiles(self, groups: Sequence[Group], size: int, chosen: Sequence[int], ranks: Sequence[float]) -> Floats:
        """Quantiles of the values of all groups, of the chosen ones of `size` quantities: (len(chosen), len(ranks))."""
        asked = np.unique(np.array(chosen, np.int64))
        for kept in (np.arange(size), asked):  # of all quantities, or of these alone
            known = [self._quantiles.get(name) for name in _quantile_names(groups, kept, ranks)]
            found = [each for each in known if each is not None]
            if len(found) == len(ranks):
                return np.stack(found, axis=1).astype(np.float64)[np.searchsorted(kept, chosen)]
        try:
            if len(groups) == 1:
                made = stored_quantiles(groups[0].sketches, size, asked.tolist(), ranks)
            else:
                merged = merge_stored([group.sketches for group in groups], size, asked.tolist())
                made = stored_quantiles(merged, len(asked), range(len(asked)), ranks)
        except ValueError:  # not kept: a warning is due each time
            return Sketches.from_bytes(merge_groups(groups, size, chosen), len(chosen)).quantiles(ranks)
        for name, column in zip(_quantile_names(groups, asked, ranks), made.T.astype(np.float32), strict=True):
            self._quantiles.keep(name, column.copy(), column.nbytes)  # what was taken in were float32
        return made[np.searchsorted(asked, chosen)]


class _Kept(Generic[_Value]):
    """What was used last, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.nbytes = 0
        self._values: OrderedDict[bytes, tuple[_Value, int]] = OrderedDict()
        self._lock = threading.Lock()  # of the two above

    def get(self, name: bytes) -> _Value | None:
        with self._lock:
            if (known := self._values.get(name)) is None:
                return None
            self._values.move_to_end(name)
            return known[0]

    def keep(self, name: bytes, value: _Value, nbytes: int) -> None:
        with self._lock:
            self.nbytes += nbytes + _KEY_BYTES
            if name in self._values:
                self.nbytes -= self._values.pop(name)[1] + _KEY_BYTES
            self._values[name] = value, nbytes
            while self.nbytes > self._max_bytes:
                self.nbytes -= self._values.popitem(last=False)[1][1] + _KEY_BYTES


def _name(parts: Sequence[StoredPart]) -> bytes:
    """Of the parts and how far they have grown: a part that goes on growing keeps its name."""
    return blake2b(np.array([(part.part, part.sampled) for part in parts], np.int64).tobytes(), digest_size=16).digest()


def _quantile_names(groups: Sequence[Group], quantities: NDArray[np.int64], ranks: Sequence[float]) -> list[bytes]:
    """Of the quantiles of all groups at each rank."""
    asked = b"".join(group.name for group in groups) + quantities.tobytes()
    return [blake2b(asked + struct.pack("<d", rank), digest_size=16).digest() for rank in ranks]


def _of(part: StoredPart, read: Mapping[int, bytes]) -> bytes:
    return read[part.part] if part.sketches is None else part.sketches
