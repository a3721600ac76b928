"""What the traffic of a model looked like between two moments: from the database, and from what is not stored yet."""

import logging
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from models.statistics.moments import Floats
from service.statistics.archive import merged_channels, read_channels, read_sketches, read_windows, readable_parts
from service.statistics.channels import ChannelMoments
from service.statistics.database import Database
from service.statistics.merged import Group, MergedSketches, Reader, levels_within, merge_groups
from service.statistics.pending import StoredPart
from service.statistics.retention import DAY_S, HOUR_S
from service.statistics.series import Series
from service.statistics.sketches import Sketches
from service.statistics.traffic import TrafficStatistics
from service.statistics.window import WindowMoments

_PATIENCE_S = 10
_USUAL_RANKS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_Found = TypeVar("_Found")
_log = logging.getLogger("normscope")


@dataclass(frozen=True)
class Step:
    """Neighbouring windows of a period that are shown as one."""

    start: int
    end: int
    requests: int
    sampled: int
    parts: tuple[StoredPart, ...]


@dataclass(frozen=True)
class Period:
    """The windows of a stretch of time, the oldest first.

    Attributes:
        series: what was counted in them.
        since: begin, seconds since 1970: that of the first window that the stretch reaches into.
        until: end, likewise.
        parts: of the windows.
        groups: their sketches; empty unless they were asked for.
        step_groups: the same, each group within one step.
        merged: merges them.
        complete: False if the database could not be read, so that only what waits in this process is here, or some window in it
            could not, which is left out.
    """

    series: Series
    since: int
    until: int
    parts: tuple[StoredPart, ...]
    groups: Sequence[Group]
    step_groups: Sequence[Group]
    merged: MergedSketches
    complete: bool

    @property
    def requests(self) -> int:
        return sum(part.requests for part in self.parts)

    @property
    def sampled(self) -> int:
        return sum(part.sampled for part in self.parts)

    @cached_property
    def windows(self) -> WindowMoments:
        """Moments of all parts: fields (W, ...)."""
        return WindowMoments.from_bytes([part.moments for part in self.parts], self.series.sides, self.series.adds)

    def total(self) -> WindowMoments:
        """Moments of all parts together: fields (...)."""
        if not self.parts:
            return WindowMoments.empty(self.series.sides, self.series.adds)
        return self.windows.pooled()

    def steps(self, step_s: int) -> list[Step]:
        """The windows by the step of `step_s` seconds in which they begin; a window that is longer than a step fills its own."""
        grouped: dict[int, list[StoredPart]] = {}
        for part in self.parts:
            grouped.setdefault(part.start // step_s * step_s, []).append(part)
        return [
            Step(
                start,
                max(start + step_s, *(part.start + part.seconds for part in parts)),
                sum(part.requests for part in parts),
                sum(part.sampled for part in parts),
                tuple(parts),
            )
            for start, parts in grouped.items()
        ]

    def pooled_by(self, steps: Sequence[Step]) -> WindowMoments:
        """Moments of each step: fields (len(steps), ...); at least one step."""
        return self.windows.pool_neighbours(_starts(steps))

    def sketches(self, quantities: Sequence[int]) -> Sketches:
        """Sketches of the chosen quantities over all parts; the period was read with sketches."""
        return Sketches.from_bytes(merge_groups(self.groups, self.series.values, quantities), len(quantities))

    def quantiles(self, quantities: Sequence[int], ranks: Sequence[float]) -> Floats:
        """Quantiles over all parts, (len(quantities), len(ranks)); the period was read with sketches."""
        return self.merged.quantiles(self.groups, self.series.values, quantities, ranks)

    def quantiles_by(self, steps: Sequence[Step], quantities: Sequence[int], ranks: Sequence[float]) -> Floats:
        """Quantiles in each step, (len(steps), len(quantities), len(ranks)); the period was read with sketches for these steps."""
        starts = [step.start for step in steps]
        grouped: list[list[Group]] = [[] for _ in steps]
        for group in self.step_groups:
            grouped[bisect_right(starts, group.start) - 1].append(group)
        return np.stack([self.merged.quantiles(each, self.series.values, quantities, ranks) for each in grouped])


@dataclass(frozen=True)
class ChannelPeriod:
    """The channels over a stretch of time.

    Attributes:
        since: begin, seconds since 1970: that of the first hour or day that the stretch reaches into.
        until: end, likewise.
        sampled: inputs whose channels were taken.
        moments: of all of them; None where there are none.
        complete: as in `Period`.
    """

    since: int
    until: int
    sampled: int
    moments: ChannelMoments | None
    complete: bool


class History:
    """Reads periods of any model."""

    def __init__(self, database: Database, tried: threading.Event) -> None:
        """`tried` is set once the tables were made, or could not be."""
        self._database, self._tried = database, tried
        self._merged = MergedSketches()

    def read(
        self,
        traffic: TrafficStatistics,
        since: float,
        until: float,
        *,
        sketches: bool = False,
        scores: bool = False,
        step_s: int | None = None,
    ) -> Period:
        """All windows that reach into the stretch between the two; where these are hours or days, it is widened to them.

        Args:
            traffic: of the model.
            since: seconds since 1970.
            until: likewise.
            sketches: whether the sketches are read too.
            scores: whether the scores against the reference are.
            step_s: of the steps of which quantiles are to be told; None where they are told of the whole alone.
        """
        since, until = _widened(since, until, traffic.window_s)
        # first what is not stored: what is stored between the two looks is then counted once, by its name
        pending = traffic.pending(since, until, sketches=sketches)

        def grouped(parts: Sequence[StoredPart], step_s: int | None, read: Reader) -> list[Group]:
            return self._merged.groups(parts, levels_within(step_s), traffic.series.values, read)

        def both(parts: Sequence[StoredPart], read: Reader) -> tuple[list[Group], list[Group]]:
            """Of the whole and of the steps."""
            if not sketches:
                return [], []
            return grouped(parts, None, read), [] if step_s is None else grouped(parts, step_s, read)

        def read(connection: Connection, series: int) -> tuple[list[StoredPart], tuple[list[Group], list[Group]], bool]:
            stored = read_windows(connection, series, since, until, sketches=False, scores=scores)
            whole = [part for part in stored if WindowMoments.are_in(part.moments, traffic.series.sides, traffic.series.adds)]
            _warn_of_broken(len(stored) - len(whole), traffic.series)
            parts = _joined(whole, pending)
            return parts, both(parts, partial(read_sketches, connection, series)), len(whole) == len(stored)

        found, connected = self._stored(read, traffic.series)
        parts, groups, whole = found or (pending, both(pending, lambda parts: {}), True)
        return Period(traffic.series, *_covered(since, until, parts), tuple(parts), *groups, self._merged, connected and whole)

    def prepare(self, traffic: TrafficStatistics, now: float) -> None:
        """Merges the sketches of the last 30 days and takes the usual quantiles of each, so that queries find both."""
        period = self.read(traffic, now - 30 * DAY_S, now, sketches=True, step_s=DAY_S)
        if steps := period.steps(DAY_S):
            period.quantiles_by(steps, range(traffic.series.values), _USUAL_RANKS)

    def read_channels(self, traffic: TrafficStatistics, since: float, until: float) -> ChannelPeriod:
        """Moments of every channel over all hours and days that reach into the stretch between the two."""
        since, until = _widened(since, until, HOUR_S)
        pending = traffic.pending_channels(since, until)
        stored, connected = self._stored(lambda connection, series: read_channels(connection, series, since, until), traffic.series)
        found = _joined(stored or [], pending)
        parts, moments = readable_parts(found, merged_channels)
        _warn_of_broken(len(found) - len(parts), traffic.series)
        complete = connected and len(parts) == len(found)
        return ChannelPeriod(*_covered(since, until, parts), sum(part.sampled for part in parts), moments, complete)

    def _stored(self, read: Callable[[Connection, int], _Found], series: Series) -> tuple[_Found | None, bool]:
        """What is read, None where nothing is stored or it cannot be read; and whether it could be."""
        self._tried.wait(_PATIENCE_S)
        try:
            with self._database.reading() as connection:
                number = self._database.series_id(connection, series)
                return (None if number is None else read(connection, number)), True
        except SQLAlchemyError as error:
            _log.warning("stored statistics cannot be read: %s", getattr(error, "orig", None) or error)
            return None, False


def _warn_of_broken(parts: int, series: Series) -> None:
    if parts:
        _log.warning("%d stored parts of model %s cannot be read and are left out of an answer", parts, series.model)


def _widened(since: float, until: float, seconds: int) -> tuple[int, int]:
    return int(since // seconds) * seconds, int(-(-until // seconds)) * seconds


def _joined(stored: Sequence[StoredPart], pending: Sequence[StoredPart]) -> list[StoredPart]:
    """In the order of time; a part that is in both as it is pending."""
    here = {part.part for part in pending}
    return sorted([*(part for part in stored if part.part not in here), *pending], key=lambda part: part.start)


def _covered(since: int, until: int, parts: Sequence[StoredPart]) -> tuple[int, int]:
    starts, ends = [part.start for part in parts], [part.start + part.seconds for part in parts]
    return min([since, *starts]), max([until, *ends])


def _starts(steps: Sequence[Step]) -> NDArray[np.int64]:
    return np.cumsum([0, *(len(step.parts) for step in steps[:-1])])
