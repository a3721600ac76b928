"""The thread that watches all loaded models for drift. It only reads what was counted and stored, and what fails is logged."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from models.statistics.drift import Levels, State
from service.engine.model import ServedModel
from service.engine.repository import Repository
from service.settings import Settings
from service.statistics.drift import DriftStatus, DriftWatch, layer_scores
from service.statistics.store import StatisticsStore

_LOOK_S = 1.0
_LATE_S = 1.0  # what was served in a window may be counted a moment later
_STORING_S = 1.0  # other replicas store their part every `statistics_flush_s`, and take so long
_log = logging.getLogger("normscope")


@dataclass(frozen=True)
class Change:
    """A state that is to be told; `previous` is None for the first that this process has found."""

    served: ServedModel
    levels: Levels
    previous: State | None
    status: DriftStatus

    @property
    def name(self) -> str:
        """The same in every replica that finds it, and after a restart."""
        parts = (self.served.traffic.series.fingerprint, self.status.state, self.status.since)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


class DriftMonitor:
    """Looks at every window of every model that has a reference, once it is complete."""

    def __init__(
        self,
        repository: Repository,
        statistics: StatisticsStore,
        settings: Settings,
        tell: Callable[[Change], object],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`tell` is called with every change of state; it must return at once."""
        self._repository, self._history, self._tell, self._clock = repository, statistics.history, tell, clock
        self.levels = Levels.of(settings.drift_false_alarms_per_month, settings.statistics_window_s)
        self._storing_s = settings.statistics_flush_s + _STORING_S if statistics.database.shared else 0
        self._watches: Mapping[tuple[str, str], DriftWatch] = {}
        self._failing: set[tuple[str, str]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watch-drift", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def close(self) -> None:
        """Ends after the look that is going on."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self.look()

    def look(self) -> None:
        """Goes through what is complete by now; raises nothing."""
        loaded = {(each.name, each.version): self._repository.find(each.name, each.version) for each in self._repository.index()}
        watches = {}
        for key, served in loaded.items():
            if served is None:
                continue
            try:
                watch = self._watch_of(key, served)
                if watch is None:
                    continue
                watches[key] = watch
                before = watch.status
                if watch.look(self._clock() - _LATE_S - self._storing_s):
                    self._changed(Change(served, self.levels, before.state if before.verdicts else None, watch.status))
                self._failing.discard(key)
            except Exception as error:  # whatever it is, other models are looked at, and this one again
                level = logging.DEBUG if key in self._failing else logging.ERROR
                _log.log(level, "%s/%s cannot be watched for drift: %s", *key, error, exc_info=True)
                self._failing.add(key)
        self._watches = watches

    def _watch_of(self, key: tuple[str, str], served: ServedModel) -> DriftWatch | None:
        if served.ranks is None:
            return None
        known = self._watches.get(key)
        if known is not None and known.traffic is served.traffic and known.ranks.fingerprint == served.ranks.fingerprint:
            return known
        return DriftWatch(served.traffic, served.ranks, self._history, self.levels, self._clock(), self._storing_s)

    def _changed(self, change: Change) -> None:
        manifest, state = change.served.manifest, change.status.state
        level = logging.WARNING if state in ("warning", "drift") else logging.INFO
        _log.log(level, "drift of %s/%s: %s, before %s", manifest.name, manifest.version, state, change.previous or "not watched")
        self._tell(change)

    def status(self, served: ServedModel) -> DriftStatus:
        """What is known of a model; `unknown` before the first look at it."""
        watch = self._watches.get((served.manifest.name, served.manifest.version))
        if watch is None or watch.traffic is not served.traffic:
            return DriftStatus("unknown", int(self._clock()))
        return watch.status

    @property
    def statuses(self) -> dict[tuple[str, str], DriftStatus]:
        """Of every model, by name and version, that is watched."""
        return {key: watch.status for key, watch in self._watches.items()}

    @property
    def layer_scores(self) -> dict[tuple[str, str], dict[str, float]]:
        """Of every model whose newest window is not unknown, the score of each layer."""
        tests = {key: (watch.status.test, watch.traffic.series.layout) for key, watch in self._watches.items()}
        return {key: layer_scores(test, layout) for key, (test, layout) in tests.items() if test is not None}
