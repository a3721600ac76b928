"""What passes through one model: batches in, at the cost of an append; pending windows out, for queries and for storage.

Threads that run models only append. Another thread merges what has arrived into windows (`absorb`), and a third stores them.
What waits for either is bounded; what no longer fits is dropped and counted.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NoReturn

from models.statistics.drift import ReferenceRanks
from models.statistics.layers import BatchStatistics
from service.statistics.channels import ChannelMoments
from service.statistics.pending import PendingChannels, PendingWindow, StoredPart
from service.statistics.retention import HOUR_S
from service.statistics.series import Series
from service.statistics.window import WindowMoments

_MAX_ARRIVED_BYTES = 256 << 20
_PROMPT_BYTES = 32 << 20  # from here on, merging does not wait for its next turn
_MAX_PENDING_BYTES = 256 << 20  # of each series: hours without a database, whatever the windows and their storing take
_MAX_CHANNEL_HOURS = 3
_BYTES_PER_GROUP = 2 * 7 * 8  # the fields of Moments, and what they were read from
_CHANNELS_EVERY_S = 10  # a run that lists its channels costs more, in the run and in merging
_SETTLED_S = 5  # after its end nothing is appended to a window any more
_log = logging.getLogger("normscope")


@dataclass(frozen=True)
class Dropped:
    """What was left out of the statistics."""

    backlog: int = 0
    """Samples: because they came faster than they could be merged."""
    storage: int = 0
    """Samples: because the database could not take them for too long."""
    failed: int = 0
    """Samples: because they could not be merged; the log says why."""
    requests: int = 0
    """Inputs that were served: because the database could not take them for too long."""
    channels: int = 0
    """Samples whose channels were listed, in hours of channels: likewise."""

    def __add__(self, other: "Dropped") -> "Dropped":
        return Dropped(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


class TrafficStatistics:
    """The statistics over the traffic of one series. Every input counts as a request: a call with three photos counts three."""

    def __init__(
        self,
        series: Series,
        window_s: int = 60,
        clock: Callable[[], float] = time.time,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """`wake` is called when much has arrived, so that somebody calls `absorb`; it must return at once."""
        self.series = series
        self.window_s = window_s
        self.ranks: ReferenceRanks | None = None
        """Of the reference that traffic is compared with from now on, if there is one."""
        self._clock, self._wake = clock, wake
        self._arrived: deque[tuple[int, BatchStatistics, bool]] = deque()
        self._arrived_bytes = 0
        self._served: Counter[int] = Counter()
        self._next_channels = 0.0
        self._users = self._dropped_backlog = 0
        self._counting = threading.Lock()  # of the six above; held for a microsecond
        self._windows: dict[int, PendingWindow] = {}
        self._channels: dict[int, PendingChannels] = {}
        self._last: tuple[int, WindowMoments] | None = None
        self._dropped = Dropped()
        self._merging = threading.Lock()  # of the four above

    def acquire(self) -> None:
        """Notes that a model counts here from now on."""
        with self._counting:
            self._users += 1

    def release(self) -> None:
        """Notes that one of them is closed and counts nothing more."""
        with self._counting:
            self._users -= 1

    @property
    def finished(self) -> bool:
        """Whether no model counts here, nothing waits to be stored and nothing was dropped: there is nothing to keep."""
        with self._merging, self._counting:
            kept = self._windows or self._channels or self._arrived or self._served
            return not self._users and not kept and self.dropped == Dropped()

    def count(self, inputs: int) -> None:
        """Counts inputs that were served and whose statistics are not taken. Safe and quick from any thread."""
        start = self._start_of(self._clock())
        with self._counting:
            self._served[start] += inputs

    def wants_channels(self) -> bool:
        """Whether the next batch that counts is to list its channels: one in ten seconds. Safe and quick from any thread."""
        now = self._clock()
        with self._counting:
            if 0 < self._next_channels - now <= _CHANNELS_EVERY_S:  # more where the clock was set back
                return False
            self._next_channels = now + _CHANNELS_EVERY_S
            return True

    def add(self, batch: BatchStatistics, *, channels: bool = False) -> None:
        """Counts the inputs of a batch, and takes in all its samples. Safe and quick from any thread.

        Args:
            batch: of one run.
            channels: the run was asked for its channels because `wants_channels` said so.
        """
        start = self._start_of(self._clock())
        size = batch.pooled.count.size * _BYTES_PER_GROUP
        with self._counting:
            self._served[start] += len(batch)
            if self._arrived_bytes + size > _MAX_ARRIVED_BYTES:
                self._dropped_backlog += len(batch)
                return
            # what lists the channels holds a hundred times as much
            self._arrived.append((start, batch if channels else replace(batch, channels=_not_listed), channels))
            self._arrived_bytes += size
            prompt = self._arrived_bytes > _PROMPT_BYTES
        if prompt:
            self._wake()

    def _start_of(self, now: float) -> int:
        return int(now // self.window_s) * self.window_s

    def absorb(self) -> None:
        """Merges what has arrived into the pending windows."""
        with self._merging:
            self._absorb()

    def _absorb(self) -> None:
        with self._counting:
            arrived, self._arrived = self._arrived, deque()
            served, self._served = self._served, Counter()
            self._arrived_bytes = 0
        by_window: dict[int, list[BatchStatistics]] = {}
        for start, batch, channels in arrived:
            by_window.setdefault(start, []).append(batch)
            if channels:
                self._absorb_channels(start // HOUR_S * HOUR_S, batch)
        for start in by_window.keys() | served.keys():
            window = self._windows.get(start)
            if window is None:
                window = self._windows[start] = PendingWindow(self.series, start, self.window_s)
            window.requests += served[start]
            if batches := by_window.get(start):
                self._absorb_batches(window, batches)
        self._bound()

    def _absorb_batches(self, window: PendingWindow, batches: Sequence[BatchStatistics]) -> None:
        try:
            window.add(batches, self.ranks)
        except Exception:  # whatever is odd about a batch, the others count
            if len(batches) > 1:
                for batch in batches:
                    self._absorb_batches(window, [batch])
                return
            if not self._dropped.failed:  # the counter tells of the others
                _log.exception("a batch of model %s cannot be counted in the statistics", self.series.model)
            self._dropped += Dropped(failed=len(batches[0]))

    def _absorb_channels(self, hour: int, batch: BatchStatistics) -> None:
        try:
            moments = ChannelMoments.of(batch)
            pending = self._channels.get(hour)
            if pending is None:
                self._channels[hour] = PendingChannels(hour, HOUR_S, moments, len(batch))
            else:
                pending.add(moments, len(batch))
        except Exception:
            _log.exception("the channels of a batch of model %s cannot be counted in the statistics", self.series.model)

    def _bound(self) -> None:
        """Drops the oldest windows when too much waits; never the newest."""
        size = sum(window.nbytes for window in self._windows.values())
        while size > _MAX_PENDING_BYTES and len(self._windows) > 1:
            size -= self._drop(min(self._windows)).nbytes
        while len(self._channels) > _MAX_CHANNEL_HOURS:
            self._drop_channels(min(self._channels))

    def _drop(self, start: int) -> PendingWindow:
        window = self._windows.pop(start)
        requests, sampled = window.stored
        self._dropped += Dropped(requests=window.requests - requests, storage=window.sampled - sampled)
        return window

    def _drop_channels(self, start: int) -> None:
        hour = self._channels.pop(start)
        self._dropped += Dropped(channels=hour.sampled - hour.stored)

    def drop_before(self, end: int) -> None:
        """Drops pending windows that end earlier: their stored parts may have been merged into coarser ones by now."""
        with self._merging:
            for start in [start for start in self._windows if start + self.window_s < end]:
                self._drop(start)
            for start in [start for start in self._channels if start + HOUR_S < end]:
                self._drop_channels(start)

    def changed(self) -> list[StoredPart]:
        """The parts of windows that storage does not know yet, the oldest first."""
        with self._merging:
            self._absorb()
            return [window.to_stored() for _, window in sorted(self._windows.items()) if window.changed]

    def changed_channels(self) -> list[StoredPart]:
        """The same of the channels."""
        with self._merging:
            return [channels.to_stored() for _, channels in sorted(self._channels.items()) if channels.changed]

    def mark_stored(self, windows: list[StoredPart], channels: list[StoredPart]) -> None:
        """Notes what was stored, and forgets what is complete."""
        settled = self._clock() - _SETTLED_S
        with self._merging:
            for part in windows:
                window = self._windows.get(part.start)
                if window is not None and window.part == part.part:
                    window.stored = (part.requests, part.sampled)
            for part in channels:
                hour = self._channels.get(part.start)
                if hour is not None and hour.part == part.part:
                    hour.stored = part.sampled
            for start, window in sorted(self._windows.items()):
                if start + self.window_s <= settled and not window.changed:
                    del self._windows[start]
                    self._last = (start, window.moments) if window.sampled else self._last
            for start, hour in list(self._channels.items()):
                if start + HOUR_S <= settled and not hour.changed:
                    del self._channels[start]

    def forget_stored(self) -> None:
        """What was stored is gone: all that is pending is to be stored again."""
        with self._merging:
            for window in self._windows.values():
                window.stored = (0, 0)
            for channels in self._channels.values():
                channels.stored = 0

    def pending(self, since: float, until: float, *, sketches: bool) -> list[StoredPart]:
        """The parts of this process that lie in [since, until], with all that was counted up to now."""
        with self._merging:
            self._absorb()
            chosen = [each for start, each in sorted(self._windows.items()) if since <= start and start + each.seconds <= until]
            return [each.to_stored(sketches=sketches) for each in chosen]

    def pending_channels(self, since: float, until: float) -> list[StoredPart]:
        """The same of the channels."""
        with self._merging:
            self._absorb()
            return [
                each.to_stored() for start, each in sorted(self._channels.items()) if since <= start and start + HOUR_S <= until
            ]

    def last_window(self) -> tuple[int, WindowMoments] | None:
        """Start and moments of the newest window that has ended and has samples, as this process saw it; None before the first."""
        now = self._clock()
        with self._merging:
            self._absorb()
            ended = [each for each in self._windows.values() if each.sampled and each.start + self.window_s <= now]
            newest = max(ended, key=lambda window: window.start, default=None)
            if newest is None or (self._last is not None and self._last[0] > newest.start):
                return self._last
            return newest.start, newest.moments

    @property
    def waiting(self) -> int:
        """Windows that are not wholly stored."""
        return sum(window.changed for window in self._windows.copy().values())

    @property
    def dropped(self) -> Dropped:
        return self._dropped + Dropped(backlog=self._dropped_backlog)


def _not_listed(row: int) -> NoReturn:
    raise LookupError(f"row {row}: the channels of this batch are not kept")
