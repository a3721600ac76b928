"""The statistics over traffic of all models: collected, stored and found again. The app has one."""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from models.artifact import Manifest
from models.statistics.layers import SideLayout
from service.settings import Settings
from service.statistics.database import Database
from service.statistics.history import History
from service.statistics.retention import Retention
from service.statistics.series import Series
from service.statistics.traffic import TrafficStatistics
from service.statistics.writer import StatisticsWriter

FILE = "statistics.sqlite"
_MERGE_S = 1.0
_log = logging.getLogger("normscope")


class StatisticsStore:
    """Hands every model the place for its statistics, and keeps them beyond the life of the model and of the process."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        """
        Raises:
            DatabaseUrlError: `database_url` cannot be used, or its driver is not installed.
        """
        self._window_s, self._clock = settings.statistics_window_s, clock
        self.database = _open(settings)
        self._traffic: dict[str, TrafficStatistics] = {}
        self._lock = threading.Lock()
        self.writer = StatisticsWriter(
            self.database,
            Retention.parse(settings.statistics_retention),
            self.traffic,
            settings.statistics_flush_s,
            clock,
            prepare=lambda traffic: self.history.prepare(traffic, clock()),
        )
        self.history = History(self.database, self.writer.attempted)
        self._arrived, self._stopped = threading.Event(), False
        self._merger = threading.Thread(target=self._merge, name="merge-statistics", daemon=True)

    def traffic_of(self, manifest: Manifest, layout: SideLayout) -> TrafficStatistics:
        """The statistics of a model version that is to release them; the same as before for weights that are served already."""
        series = Series.of(manifest, layout)
        with self._lock:
            found = self._traffic.get(series.fingerprint)
            if found is None:
                found = TrafficStatistics(series, self._window_s, self._clock, self._arrived.set)
                self._traffic[series.fingerprint] = found
                self.writer.wake()
            found.acquire()
            return found

    def traffic(self) -> Sequence[TrafficStatistics]:
        """Of all models that are served, and of those that were and have something left to store."""
        with self._lock:
            self._traffic = {name: traffic for name, traffic in self._traffic.items() if not traffic.finished}
            return list(self._traffic.values())

    def start(self) -> None:
        """Begins to merge and to store."""
        self._merger.start()
        self.writer.start()

    def close(self) -> None:
        """Stores the rest and ends; nothing is counted any more."""
        self._stopped = True
        self._arrived.set()
        if self._merger.is_alive():
            self._merger.join()
        self.writer.close()
        self.database.close()

    def _merge(self) -> None:
        while not self._stopped:
            self._arrived.wait(_MERGE_S)
            self._arrived.clear()
            for traffic in self.traffic():
                try:
                    traffic.absorb()
                except Exception:  # the others are merged all the same, and this one next time
                    _log.exception("statistics of model %s cannot be merged", traffic.series.model)


def _open(settings: Settings) -> Database:
    if settings.database_url is not None:
        return Database(settings.database_url.get_secret_value())
    folder = settings.data_dir
    if folder is None:
        return Database("sqlite://")
    if (problem := _unwritable(folder)) is not None:
        _log.warning("statistics stay in memory and end with the process: %s; set NORMSCOPE_DATA_DIR", problem)
        return Database("sqlite://")
    return Database.file(folder / FILE)


def _unwritable(folder: Path) -> str | None:
    """Why no file can be written here."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if (file := folder / FILE).exists():
            with file.open("ab"):
                pass
    except OSError as error:
        return str(error)
    return None
