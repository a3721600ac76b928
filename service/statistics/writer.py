"""The one thread that stores: takes what the models' traffic has pending to the database, and merges what has grown old there.

A database that fails costs nothing but time here: the pending parts stay where they are, in bounded memory, until the next turn.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from sqlalchemy.exc import SQLAlchemyError

from service.statistics.archive import roll_up, write_parts
from service.statistics.database import Database, NewerDatabaseError
from service.statistics.retention import Retention
from service.statistics.series import Series
from service.statistics.traffic import TrafficStatistics

_ROLL_UP_S = 60
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
    ) -> None:
        """`traffic` tells of all models whose statistics are to be stored."""
        self._database, self._retention, self._traffic, self._flush_s, self._clock = database, retention, traffic, flush_s, clock
        self.storing = True
        """False while the last attempt to store failed."""
        self.attempted = threading.Event()
        """Set once the database was tried for the first time."""
        self._migrated = False
        self._series: dict[str, int] = {}
        self._rolled_up_at = 0.0
        self._stop = threading.Event()
        self._storing = threading.Lock()  # one at a time
        self._thread = threading.Thread(target=self._work, name="store-statistics", daemon=True)

    def start(self) -> None:
        """Begins to store."""
        self._thread.start()

    def close(self) -> None:
        """Stores what is pending once more and ends."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            self.store()
            self.attempted.set()
            ended = self._stop.wait(self._flush_s)
        self.store()

    def store(self) -> bool:
        """Stores all that is pending; false, and no exception, where the database does not take it."""
        with self._storing:
            try:
                self._store()
            except (SQLAlchemyError, OSError, NewerDatabaseError) as error:
                reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
                _log.log(
                    logging.WARNING if self.storing else logging.DEBUG,
                    "statistics cannot be stored (%s); they wait in memory, and storing is tried again every %g s",
                    reason,
                    self._flush_s,
                )
                self.storing, self._migrated = False, False
                self._series.clear()
                self._database.forget_connections()
            else:
                if not self.storing:
                    _log.warning("statistics are stored again")
                self.storing = True
            return self.storing

    def _store(self) -> None:
        now = self._clock()
        if not self._migrated:
            self._database.migrate()
            self._migrated = True
        for traffic in self._traffic():
            # older parts may have been merged into an hour meanwhile, where they could not be replaced
            traffic.drop_before(int(now) - self._retention.windows_s)
            windows, channels = traffic.changed(), traffic.changed_channels()
            if windows or channels:
                series = self._series_id(traffic.series)
                with self._database.writing() as connection:
                    write_parts(connection, series, windows, channels)
            traffic.mark_stored(windows, channels)
        if now - self._rolled_up_at >= _ROLL_UP_S:
            roll_up(self._database, self._retention, now)
            self._rolled_up_at = now

    def _series_id(self, series: Series) -> int:
        known = self._series.get(series.fingerprint)
        if known is None:
            known = self._series[series.fingerprint] = self._database.add_series(series)
        return known
