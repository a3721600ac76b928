"""The one thread that stores: takes what the models' traffic has pending to the database, and merges what has grown old there.

A database that fails costs nothing but time here: the pending parts stay where they are, in bounded memory, until the next turn.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from sqlalchemy.exc import SQLAlchemyError

from service.statistics.archive import keep_newest, roll_up, write_parts
from service.statistics.database import Database, NewerDatabaseError
from service.statistics.retention import HOUR_S, Retention
from service.statistics.series import Series
from service.statistics.traffic import TrafficStatistics

_ROLL_UP_S = 60
_SLOW_S = 5  # beyond three intervals: as long as one statement may take
_END_S = 10  # for the last store; SQLite waits 5 s for a lock, and a statement of PostgreSQL takes 5 s at most
_MEMORY_BYTES = 256 << 20  # of all models, where nothing but memory keeps them
_MARGIN_S = 60  # storing takes its time, and clocks of replicas differ
_log = logging.getLogger("normscope")


class StatisticsWriter:
    """Stores the traffic of all models every `flush_s` seconds."""

    def __init__(
        self,
        database: Database,
        retention: Retention,
        traffic: Callable[[], Sequence[TrafficStatistics]],
        flush_s: float,
        clock: Callable[[], float] = time.time,
        prepare: Callable[[TrafficStatistics], object] = lambda traffic: None,
    ) -> None:
        """
        Args:
            database: where to.
            retention: of what is there.
            traffic: tells of all models whose statistics are to be stored.
            flush_s: seconds between two times.
            clock: seconds since 1970.
            prepare: is called with each model, when it is new here and once in every hour, when its last windows are stored.
        """
        self._database, self._retention, self._traffic, self._flush_s, self._clock = database, retention, traffic, flush_s, clock
        self.attempted = threading.Event()
        """Set once the database was tried for the first time."""
        self._failing = False
        self._stored_at = clock()
        self._migrated = False
        self._series: dict[str, int] = {}
        self._rolled_up_at = 0.0
        self._prepare, self._prepared = prepare, dict[str, int]()
        self._stop, self._wake = threading.Event(), threading.Event()
        self._storing = threading.Lock()  # one at a time
        self._thread = threading.Thread(target=self._work, name="store-statistics", daemon=True)

    @property
    def storing(self) -> bool:
        """False while the last attempt to store failed, or the one that goes on takes longer than three intervals and 5 s."""
        return not self._failing and self._clock() - self._stored_at <= 3 * self._flush_s + _SLOW_S

    def start(self) -> None:
        """Begins to store."""
        self._stored_at = self._clock()
        self._thread.start()

    def wake(self) -> None:
        """Stores soon, for there is a new model."""
        self._wake.set()

    def close(self) -> None:
        """Stores what is pending once more and ends; a database that does not answer is given up after 10 s."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_END_S)
            if self._thread.is_alive():
                _log.warning("the last statistics are lost: the database has not answered for %g s", _END_S)

    def _work(self) -> None:
        while not self._stop.is_set():
            stored = self.store()
            self.attempted.set()
            if stored:
                self.prepare()
            self._wake.wait(self._flush_s)
            self._wake.clear()
        self.store()

    def prepare(self) -> None:
        """Prepares the models whose turn it is; `attempted` is set."""
        hour = int(self._clock() // HOUR_S)
        for traffic in self._traffic():
            name = traffic.series.fingerprint
            if self._stop.is_set() or self._prepared.get(name) == hour:
                continue
            self._prepared[name] = hour
            try:
                self._prepare(traffic)
            except Exception:  # queries do without
                _log.exception("statistics of model %s cannot be prepared for queries", traffic.series.model)

    def store(self) -> bool:
        """Stores all that is pending; false, and no exception, where that fails."""
        with self._storing:
            try:
                self._flush()
            except Exception as error:  # whatever it is, the next attempt may succeed
                _log.log(
                    logging.DEBUG if self._failing else logging.WARNING,
                    "statistics cannot be stored (%s); they wait in memory, and storing is tried again every %g s",
                    _reason(error),
                    self._flush_s,
                    exc_info=_unexpected(error),
                )
                self._failing = True
                self._reconnect()
            else:
                if self._failing:
                    _log.warning("statistics are stored again")
                self._failing, self._stored_at = False, self._clock()
                self._roll_up()
            return not self._failing

    def _flush(self) -> None:
        if self._database.replaced:
            _log.warning("the file of the statistics was deleted or replaced; what is still in memory is stored again")
            self._reconnect()
            for traffic in self._traffic():
                traffic.forget_stored()
        if not self._migrated:
            self._database.migrate()
            self._migrated = True
        for traffic in self._traffic():
            # from their end + `windows_s` on, parts may have been merged into an hour, where they could not be replaced
            traffic.drop_before(int(self._clock()) - self._retention.windows_s + _MARGIN_S)
            windows, channels = traffic.changed(), traffic.changed_channels()
            if windows or channels:
                series = self._series_id(traffic.series)
                with self._database.writing() as connection:
                    write_parts(connection, series, windows, channels)
            traffic.mark_stored(windows, channels)

    def _roll_up(self) -> None:
        now = self._clock()
        if self._stop.is_set() or 0 <= now - self._rolled_up_at < _ROLL_UP_S:
            return
        self._rolled_up_at = now
        try:
            roll_up(self._database, self._retention, now, self._stop.is_set)
            if self._database.in_memory:
                keep_newest(self._database, _MEMORY_BYTES)
        except Exception as error:  # new statistics are stored all the same
            _log.warning(
                "old statistics cannot be merged (%s); tried again in %d s",
                _reason(error),
                _ROLL_UP_S,
                exc_info=_unexpected(error),
            )

    def _reconnect(self) -> None:
        """The next flush begins as if nothing were known of the database."""
        self._migrated = False
        self._series.clear()
        self._database.forget_connections()

    def _series_id(self, series: Series) -> int:
        known = self._series.get(series.fingerprint)
        if known is None:
            known = self._series[series.fingerprint] = self._database.add_series(series)
        return known


def _reason(error: Exception) -> str:
    """The first line of what the driver says."""
    return next(iter(str(getattr(error, "orig", None) or error).strip().splitlines()), type(error).__name__)


def _unexpected(error: Exception) -> bool:
    """Whether it is a fault of ours, whose traceback is wanted, rather than of the database."""
    return not isinstance(error, (SQLAlchemyError, OSError, NewerDatabaseError))
