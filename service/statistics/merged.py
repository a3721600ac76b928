"""Sketches of whole hours, days and weeks, merged from those of their windows when somebody asks, and kept for the next who does.

Merging costs a microsecond for each quantity of each window, which for a month of a model with hundreds of them is half a second.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from service.statistics.pending import StoredPart
from service.statistics.retention import DAY_S, HOUR_S
from service.statistics.sketches import Sketches

_WEEK_S = 7 * DAY_S
_MAX_BYTES = 64 << 20
_log = logging.getLogger("normscope")

Reader = Callable[[Sequence[StoredPart]], Mapping[int, bytes]]
"""Parts in, the stored sketches of each out, by the name of the part."""


@dataclass(frozen=True)
class Group:
    """The sketches of neighbouring windows together.

    Attributes:
        start: of the first window, seconds since 1970.
        sketches: as `Sketches.to_bytes`.
    """

    start: int
    sketches: bytes


def readable(groups: Sequence[Group], size: int, chosen: Sequence[int] | None = None) -> Iterator[Sketches]:
    """The sketches of each group, of `size` quantities or the chosen ones; what cannot be read is left out, with a warning."""
    for group in groups:
        try:
            sketches = Sketches.from_bytes(group.sketches, size, chosen)
        except ValueError as error:
            _log.warning("stored quantiles of the window from %d on cannot be read and are left out: %s", group.start, error)
            continue
        yield sketches


def levels_within(step_s: int | None) -> tuple[int, ...]:
    """Seconds of the groups that steps of this length are made of, rising; all there are without a step."""
    return tuple(level for level in (HOUR_S, DAY_S, _WEEK_S) if step_s is None or step_s % level == 0)


class MergedSketches:
    """Merges, and keeps what was merged last; usable from several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[tuple[int, int], ...], bytes] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()  # of the two above

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
            Group(group[0].start, self._merged(group, levels[:-1], size, read) if len(group) > 1 else _of(group[0], alone))
            for group in grouped
        ]

    def _merged(self, parts: Sequence[StoredPart], levels: Sequence[int], size: int, read: Reader) -> bytes:
        key = tuple((part.part, part.sampled) for part in parts)  # a part that goes on growing keeps its name
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return known
        merged = Sketches(size)
        for each in readable(self.groups(parts, levels, size, read), size):
            merged.merge(each)
        made = merged.to_bytes()
        with self._lock:
            self._nbytes += len(made) - len(self._kept.pop(key, b""))
            self._kept[key] = made
            while self._nbytes > _MAX_BYTES:
                self._nbytes -= len(self._kept.popitem(last=False)[1])
        return made


def _of(part: StoredPart, read: Mapping[int, bytes]) -> bytes:
    return read[part.part] if part.sketches is None else part.sketches
