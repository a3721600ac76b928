"""Quantiles over long stretches: from groups of windows that are merged once, and the same as from all windows."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from models.statistics.moments import Floats
from models.statistics.request_values import request_values
from service.statistics import history as histories
from service.statistics import merged
from service.statistics.archive import read_sketches
from service.statistics.database import Database
from service.statistics.history import History, Period
from service.statistics.retention import DAY_S, HOUR_S, Retention
from service.statistics.traffic import TrafficStatistics
from service.statistics.writer import StatisticsWriter
from tests.service.statistics.made import SERIES, Clock, batch

_QUANTITIES = list(range(SERIES.values))
_RANKS = [0.0, 0.25, 0.5, 1.0]


class Service:
    """Three days of traffic, a request in each of some minutes; the last minutes are not stored."""

    def __init__(self, database: Database) -> None:
        self.clock = Clock()
        self.traffic = TrafficStatistics(SERIES, 60, self.clock)
        self.history = History(database, threading.Event())
        self.history._tried.set()
        self.writer = StatisticsWriter(database, Retention.parse("5h,2d,30d"), lambda: [self.traffic], 10, self.clock)
        self.start = int(self.clock.now)
        self.served: list[tuple[int, Floats]] = []
        for minute in [*range(0, 3 * 24 * 60, 60), *range(3 * 24 * 60, 3 * 24 * 60 + 20)]:
            self.clock.now = self.start + 60 * minute
            self.serve()
            assert self.writer.store()
        self.clock.now += 60
        self.serve()
        self.end = self.clock.now + 60

    def serve(self) -> None:
        """A request."""
        added = batch(1, seed=len(self.served))
        self.traffic.add(added)
        self.served.append((int(self.clock.now), request_values(added)[0]))

    def read(self, step_s: int | None = None) -> Period:
        """All of it."""
        return self.history.read(self.traffic, self.start, self.end, sketches=True, step_s=step_s)

    def expected(self, since: int, until: int) -> Floats:
        """The quantiles of all values in a stretch, (V, ranks): exact for so few."""
        values = np.array([each for when, each in self.served if since <= when < until], np.float32)
        return np.quantile(values, _RANKS, axis=0, method="inverted_cdf").T.astype(np.float64)


@pytest.fixture
def service() -> Iterator[Service]:
    """In memory."""
    database = Database("sqlite://")
    yield Service(database)
    database.close()


@pytest.fixture
def read_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of sketches that each read takes from the database."""
    counts: list[int] = []

    def count(connection: Any, series: int, parts: Sequence[Any]) -> dict[int, bytes]:
        counts.append(len(parts))
        return read_sketches(connection, series, parts)

    monkeypatch.setattr(histories, "read_sketches", count)
    return counts


@pytest.mark.parametrize("step_s", [None, 60, HOUR_S, DAY_S, 2 * DAY_S])
def test_quantiles_of_the_whole_and_of_each_step_are_those_of_the_requests(service: Service, step_s: int | None) -> None:
    """Whatever was merged into hours and days, in the database and for the query, no request is lost or in another step."""
    for _ in range(2):  # merged, and found merged
        period = service.read(step_s)
        found = period.sketches(_QUANTITIES)
        assert found.counts.tolist() == [len(service.served)] * SERIES.values
        np.testing.assert_array_equal(found.quantiles(_RANKS), service.expected(service.start, int(service.end)))
        np.testing.assert_array_equal(period.sketches([3, 0]).quantiles([0.5])[:, 0], found.quantiles([0.5])[[3, 0], 0])
        if step_s:
            steps = period.steps(step_s)
            by_step = period.quantiles_by(steps, _QUANTITIES, _RANKS)
            for step, quantiles in zip(steps, by_step, strict=True):
                np.testing.assert_array_equal(quantiles, service.expected(step.start, step.end))


def test_what_was_merged_is_not_read_again(service: Service, read_parts: list[int]) -> None:
    """The second query reads what stands alone, and after a new request what is new; it sees all requests."""
    period = service.read()
    first, before = sum(read_parts), len(period.parts)
    read_parts.clear()
    service.read()
    assert sum(read_parts) < 3 < first <= before
    read_parts.clear()
    service.serve()
    assert service.read().sketches(_QUANTITIES).counts.tolist() == [len(service.served)] * SERIES.values
    assert service.writer.store()
    assert service.read().sketches(_QUANTITIES).counts.tolist() == [len(service.served)] * SERIES.values
    assert sum(read_parts) < 2 * first


def test_what_is_kept_is_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the room to keep anything the answers are the same."""
    monkeypatch.setattr(merged, "_MAX_BYTES", 1000)
    for _ in range(2):
        assert service.read().sketches(_QUANTITIES).counts.tolist() == [len(service.served)] * SERIES.values
    assert service.history._merged._nbytes <= 1000
