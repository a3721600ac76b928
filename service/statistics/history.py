"""What the traffic of a model looked like between two moments: from the database, and from what is not stored yet."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from models.statistics.moments import Floats
from service.statistics.archive import read_channels, read_windows
from service.statistics.channels import ChannelMoments
from service.statistics.database import Database
from service.statistics.pending import StoredPart
from service.statistics.retention import HOUR_S
from service.statistics.series import Series
from service.statistics.sketches import Sketches
from service.statistics.traffic import TrafficStatistics
from service.statistics.window import WindowMoments

_PATIENCE_S = 10
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
    """The windows that lie between two moments, the oldest first.

    Attributes:
        series: what was counted in them.
        parts: of the windows.
        complete: False if the database could not be read, so that only what waits in this process is here.
    """

    series: Series
    parts: tuple[StoredPart, ...]
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
        return merged_sketches(self.parts, self.series, quantities)


def merged_sketches(parts: Sequence[StoredPart], series: Series, quantities: Sequence[int]) -> Sketches:
    """Sketches of the chosen quantities over these parts, which were read with sketches."""
    merged = Sketches(len(quantities))
    for part in parts:
        if part.sketches is not None and part.sampled:
            merged.merge(Sketches.from_bytes(part.sketches, series.values, quantities))
    return merged


class History:
    """Reads periods of any model."""

    def __init__(self, database: Database, tried: threading.Event) -> None:
        """`tried` is set once the tables were made, or could not be."""
        self._database, self._tried = database, tried

    def read(
        self, traffic: TrafficStatistics, since: float, until: float, *, sketches: bool = False, scores: bool = False
    ) -> Period:
        """All windows that lie between the two, both widened to whole windows."""
        since, until = _widened(since, until, traffic.window_s)
        # first what is not stored: what is stored between the two looks is then counted once, by its name
        pending = traffic.pending(since, until, sketches=sketches)
        here = {part.part for part in pending}
        stored, complete = self._stored(
            lambda connection, series: read_windows(connection, series, since, until, sketches=sketches, scores=scores),
            traffic.series,
        )
        parts = sorted([*(part for part in stored if part.part not in here), *pending], key=lambda part: part.start)
        return Period(traffic.series, tuple(parts), complete)

    def read_channels(self, traffic: TrafficStatistics, since: float, until: float) -> ChannelMoments | None:
        """Moments of every channel over all hours between the two, both widened to whole hours; None where there is none."""
        since, until = _widened(since, until, HOUR_S)
        pending = traffic.pending_channels(since, until)
        here = {part.part for part in pending}
        stored, _ = self._stored(lambda connection, series: read_channels(connection, series, since, until), traffic.series)
        parts = [*(part for part in stored if part.part not in here), *pending]
        return ChannelMoments.merged([ChannelMoments.from_bytes(part.moments) for part in parts]) if parts else None

    def _stored(self, read: "Callable[..., list[StoredPart]]", series: Series) -> tuple[list[StoredPart], bool]:
        self._tried.wait(_PATIENCE_S)
        try:
            with self._database.reading() as connection:
                number = self._database.series_id(connection, series)
                return ([] if number is None else read(connection, number)), True
        except SQLAlchemyError as error:
            _log.warning("stored statistics cannot be read: %s", getattr(error, "orig", None) or error)
            return [], False


def _widened(since: float, until: float, seconds: int) -> tuple[int, int]:
    return int(since // seconds) * seconds, int(-(-until // seconds)) * seconds


def _starts(steps: Sequence[Step]) -> NDArray[np.int64]:
    return np.cumsum([0, *(len(step.parts) for step in steps[:-1])])


def quantiles_by(steps: Sequence[Step], series: Series, quantities: Sequence[int], ranks: Sequence[float]) -> Floats:
    """Quantiles in each step: (len(steps), len(quantities), len(ranks))."""
    return np.stack([merged_sketches(step.parts, series, quantities).quantiles(ranks) for step in steps])
