"""Quantiles over long stretches: from groups of windows that are merged once, and the same as from all windows."""

import threading
from collections.abc import Callable, Iterator, Sequence
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
from service.statistics.merged import MergedSketches
from service.statistics.retention import DAY_S, HOUR_S, Retention
from service.statistics.stored_sketches import stored_quantiles
from service.statistics.traffic import TrafficStatistics
from service.statistics.writer import StatisticsWriter
from tests.service.statistics.made import SERIES, Clock, batch

_QUANTITIES = list(range(SERIES.values))
_RANKS = [0.0, 0.25, 0.5, 1.0]


class Service:
    """Three days of traffic, a request in each of some minutes; the last minutes are not stored."""

    def __init__(self, database: Database) -> None:
        self.clock, self.database = Clock(), database
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

    def serve(self, traffic: TrafficStatistics | None = None) -> None:
        """A request, to this replica or another."""
        added = batch(1, seed=len(self.served))
        (traffic or self.traffic).add(added)
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


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of quantities of which quantiles are computed, each time."""
    counts: list[int] = []

    def count(blob: bytes, size: int, chosen: Sequence[int], ranks: Sequence[float]) -> Floats:
        counts.append(len(chosen))
        return stored_quantiles(blob, size, chosen, ranks)

    monkeypatch.setattr(merged, "stored_quantiles", count)
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


def test_what_is_kept_is_bounded(service: Service) -> None:
    """Without the room to keep anything the answers are the same."""
    service.history._merged = MergedSketches(1000, 500)
    for _ in range(2):
        period = service.read(DAY_S)
        assert period.sketches(_QUANTITIES).counts.tolist() == [len(service.served)] * SERIES.values
        expected = service.expected(service.start, int(service.end))
        np.testing.assert_array_equal(period.quantiles(_QUANTITIES, _RANKS), expected)
        assert period.quantiles_by(period.steps(DAY_S), _QUANTITIES, _RANKS).shape[1:] == expected.shape
        assert service.history._merged.nbytes <= 1500


def test_quantiles_that_were_found_are_not_computed_again(service: Service, computed: list[int]) -> None:
    """In whatever order, and for some of the quantities, ranks that were asked for are told again; what is new is computed."""
    expected = service.expected(service.start, int(service.end))
    period = service.read(DAY_S)
    steps = period.steps(DAY_S)
    by_step = period.quantiles_by(steps, _QUANTITIES, _RANKS)
    np.testing.assert_array_equal(period.quantiles(_QUANTITIES, _RANKS), expected)
    assert len(computed) == len(steps) + 1
    again = service.read(DAY_S)
    np.testing.assert_array_equal(again.quantiles(_QUANTITIES, _RANKS), expected)
    np.testing.assert_array_equal(again.quantiles([3, 0], _RANKS[::-1]), expected[[3, 0], ::-1])
    np.testing.assert_array_equal(again.quantiles_by(steps, [7, 2], [_RANKS[2]]), by_step[:, [7, 2], 2:3])
    assert len(computed) == len(steps) + 1
    again.quantiles([3], [0.7])
    again.quantiles([3], [0.7])
    again.quantiles([4], [0.7])
    assert len(computed) == len(steps) + 3


def test_windows_that_change_are_seen(service: Service, computed: list[int]) -> None:
    """A window that grows, one that another replica adds late, and windows that are merged into an hour or a day: the quantiles are
    those of all requests.
    """
    replica = TrafficStatistics(SERIES, 60, service.clock)
    its_writer = StatisticsWriter(service.database, Retention.parse("5h,2d,30d"), lambda: [replica], 10, service.clock)

    def late() -> None:
        service.serve(replica)
        assert its_writer.store()

    def merged_into_days() -> None:
        assert service.writer.store()
        service.clock.now += 4 * DAY_S
        assert service.writer.store()

    changes: list[Callable[[], None]] = [lambda: None, service.serve, late, service.serve, late, merged_into_days]
    for change in changes:
        count = len(computed)
        change()
        period = service.read(DAY_S)
        np.testing.assert_array_equal(period.quantiles(_QUANTITIES, _RANKS), service.expected(service.start, int(service.end)))
        steps = period.steps(DAY_S)
        for step, quantiles in zip(steps, period.quantiles_by(steps, _QUANTITIES, _RANKS), strict=True):
            np.testing.assert_array_equal(quantiles, service.expected(step.start, step.end))
        assert len(computed) > count


def test_the_first_query_finds_what_was_prepared(service: Service, read_parts: list[int], computed: list[int]) -> None:
    """Hours, days and weeks are merged and the usual quantiles of days taken; what was served since then is counted too."""
    service.history.prepare(service.traffic, service.end)
    assert sum(read_parts) > 3
    read_parts.clear()
    computed.clear()
    period = service.read(DAY_S)
    assert sum(read_parts) < 3
    quantiles = period.quantiles_by(period.steps(DAY_S), _QUANTITIES, [0.5, 0.95])
    assert not computed
    assert quantiles.shape == (len(period.steps(DAY_S)), SERIES.values, 2)
    service.serve()
    assert service.read().sketches(_QUANTITIES).counts.tolist() == [len(service.served)] * SERIES.values
