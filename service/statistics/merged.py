"""Sketches of whole hours, days and weeks, merged from those of their windows when somebody asks, and kept for the next who does.

So are quantiles that were asked for. Both are kept by the names of the windows, so that what has changed is never found again.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np

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
        Sketches.from_bytes(group.sketches, size, chosen)
    except ValueError as error:
        _log.warning("stored quantiles of the window from %d on cannot be read and are left out: %s", group.start, error)
        return False
    return True


def levels_within(step_s: int | None) -> tuple[int, ...]:
    """Seconds of the groups that steps of this length are made of, rising; all there are without a step."""
    return tuple(level for level in (HOUR_S, DAY_S, _WEEK_S) if step_s is None or step_s % level == 0)


class MergedSketches:
    """Merges, and keeps what was merged last; usable from several threads."""

    def __init__(self) -> None:
        self._sketches: _Kept[bytes] = _Kept(_MAX_BYTES)
        self._quantiles: _Kept[Floats] = _Kept(_MAX_QUANTILE_BYTES)

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
        asked = np.array(chosen, np.int64).tobytes() + np.array(ranks, np.float64).tobytes()
        name = blake2b(b"".join(group.name for group in groups) + asked, digest_size=16).digest()
        found = self._quantiles.get(name)
        if found is None:
            try:
                if len(groups) == 1:
                    found = stored_quantiles(groups[0].sketches, size, chosen, ranks)
                else:
                    merged = merge_stored([group.sketches for group in groups], size, chosen)
                    found = stored_quantiles(merged, len(chosen), range(len(chosen)), ranks)
            except ValueError:  # not kept: a warning is due each time
                return Sketches.from_bytes(merge_groups(groups, size, chosen), len(chosen)).quantiles(ranks)
            self._quantiles.keep(name, found, found.nbytes)
        return found


class _Kept(Generic[_Value]):
    """What was used last, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._nbytes = 0
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
            self._nbytes += nbytes + _KEY_BYTES
            if name in self._values:
                self._nbytes -= self._values.pop(name)[1] + _KEY_BYTES
            self._values[name] = value, nbytes
            while self._nbytes > self._max_bytes:
                self._nbytes -= self._values.popitem(last=False)[1][1] + _KEY_BYTES


def _name(parts: Sequence[StoredPart]) -> bytes:
    """Of the parts and how far they have grown: a part that goes on growing keeps its name."""
    return blake2b(np.array([(part.part, part.sampled) for part in parts], np.int64).tobytes(), digest_size=16).digest()


def _of(part: StoredPart, read: Mapping[int, bytes]) -> bytes:
    return read[part.part] if part.sketches is None else part.sketches
