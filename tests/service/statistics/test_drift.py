"""A watched model: which windows make a stretch, what its state is, since when, where, and what of it is to be told."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.statistics.drift import LEAST_REQUESTS, Levels, ReferenceRanks, WindowScores, WindowTest
from models.statistics.moments import Floats
from models.statistics.request_values import request_values
from service.statistics.database import Database
from service.statistics.drift import MAX_VERDICTS, DriftWatch, affected_layers, layer_scores
from service.statistics.history import History
from service.statistics.retention import HOUR_S, Retention
from service.statistics.traffic import TrafficStatistics
from service.statistics.writer import StatisticsWriter
from tests.service.statistics.made import SERIES, Clock, batch, serve

_LEVELS = Levels.of(1)
_MANY = 2 * LEAST_REQUESTS
_RANKS = ReferenceRanks.of(request_values(batch(400, seed=999)), SERIES.sides)


class Watched:
    """One replica: it counts, stores and watches, by a clock that the test moves from minute to minute."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.clock, self.database = clock, database
        self.traffic = TrafficStatistics(SERIES, 60, clock)
        self.traffic.ranks = _RANKS
        self.writer = StatisticsWriter(database, Retention.parse("6h,7d,365d"), lambda: [self.traffic], 10, clock)
        self.writer.attempted.set()
        self.history = History(database, self.writer.attempted)
        self.watch = self.new_watch()
        self.seed = 0

    def new_watch(self) -> DriftWatch:
        """That of a process that starts now."""
        return DriftWatch(self.traffic, _RANKS, self.history, _LEVELS, self.clock.now)

    def minute(self, n: int, *, offset: float = 0.0) -> bool:
        """Serves n requests in a window, ends it and looks; whether the state is to be told."""
        self.seed += 1
        if n:
            serve(self.traffic, n, self.seed, offset=offset)
        self.clock.now += 60
        assert self.writer.store()
        return self.watch.look(self.clock.now)

    @property
    def states(self) -> list[str]:
        return [each.state for each in self.watch.status.verdicts]


@pytest.fixture
def watched() -> Iterator[Watched]:
    """With a database in memory, at a full hour."""
    database = Database("sqlite://")
    yield Watched(database, Clock())
    database.close()


def test_states_follow_the_traffic(watched: Watched) -> None:
    """Like the reference it is ok, moved it is drift, since the first such window, until it is as before; each change is told."""
    start = int(watched.clock.now)
    told = [watched.minute(_MANY, offset=3.0 if 2 <= minute < 5 else 0.0) for minute in range(7)]
    assert watched.states == ["ok", "ok", "drift", "drift", "drift", "ok", "ok"]
    assert told == [False, False, True, False, False, True, False]
    assert watched.watch.status.since == start + 5 * 60
    drifted = watched.watch.status.verdicts[3]
    assert (drifted.since, drifted.until, drifted.requests, drifted.sampled) == (start + 180, start + 240, _MANY, _MANY)
    assert watched.watch.status.seen == start + 7 * 60
    assert drifted.score is not None
    assert drifted.score > -np.log10(_LEVELS.drift)


def test_a_run_of_a_state_keeps_its_beginning(watched: Watched) -> None:
    """However many windows it lasts."""
    start = int(watched.clock.now)
    for _ in range(3):
        watched.minute(_MANY, offset=3.0)
    assert (watched.watch.status.state, watched.watch.status.since) == ("drift", start)


def test_windows_accumulate_to_30_requests(watched: Watched) -> None:
    """Until then the state before holds; the stretch covers all its windows and counts all their requests."""
    start = int(watched.clock.now)
    for minute, collected in enumerate((10, 20, 0, 10, 20, 0)):
        watched.minute(10)
        assert watched.watch.status.collected == collected, minute
    assert [(each.since - start, each.until - start, each.sampled) for each in watched.watch.status.verdicts] == [
        (0, 180, 30),
        (180, 360, 30),
    ]
    assert watched.states == ["ok", "ok"]


def test_an_hour_with_too_few_requests_is_unknown(watched: Watched) -> None:
    """After it counting begins anew, and nothing of it is tested; the change to unknown is told."""
    start = int(watched.clock.now)
    watched.minute(_MANY)
    told = [watched.minute(29 if minute == 1 else 0) for minute in range(1, 120)]
    assert watched.states == ["ok", "unknown"]
    last = watched.watch.status.verdicts[-1]
    assert (last.since - start, last.until - start, last.score) == (HOUR_S, 2 * HOUR_S, None)
    assert watched.watch.status.test is None
    assert [minute for minute, each in enumerate(told, 1) if each] == [119]
    assert watched.watch.status.collected == 0


def test_what_is_left_over_of_an_hour_is_left_out(watched: Watched) -> None:
    """No stretch crosses a full hour, so that it does not matter when a process began; the state before holds."""
    watched.clock.now += HOUR_S - 120
    start = int(watched.clock.now)
    for n in (_MANY, 20, 20, 20):
        watched.minute(n, offset=3.0)
    assert [(each.since - start, each.sampled) for each in watched.watch.status.verdicts] == [(0, _MANY), (120, 40)]
    assert watched.states == ["drift", "drift"]


def test_nothing_is_said_of_the_time_before_the_first_request(watched: Watched) -> None:
    """The state is unknown and there is no verdict, for hours; the first window that is ok is not told."""
    for _ in range(130):
        assert not watched.minute(0)
    assert (watched.watch.status.state, watched.watch.status.verdicts) == ("unknown", ())
    assert not watched.minute(_MANY)
    assert watched.states == ["ok"]


def test_a_restart_forgets_nothing(watched: Watched) -> None:
    """What another process finds in the stored windows is the same to the second; a bad state is told again, once."""
    for minute in range(40):
        watched.minute(10, offset=3.0 if minute >= 20 else 0.0)
    again = watched.new_watch()
    assert again.look(watched.clock.now)
    assert again.status.verdicts == watched.watch.status.verdicts
    assert again.status.since == watched.watch.status.since
    assert again.status.collected == watched.watch.status.collected == 10
    assert not again.look(watched.clock.now + 1)


def test_replicas_answer_alike() -> None:
    """Each counts a part of the requests; each tests all of them together, with the same result."""
    database, clock = Database("sqlite://"), Clock()
    replicas = [Watched(database, clock) for _ in range(2)]
    for minute in range(4):
        for i, replica in enumerate(replicas):
            serve(replica.traffic, 20, 10 * minute + i, offset=3.0 * minute)
        clock.now += 60
        for replica in replicas:
            assert replica.writer.store()
    for replica in replicas:
        replica.watch.look(clock.now)
    first, second = (replica.watch.status for replica in replicas)
    assert first.verdicts == second.verdicts
    assert [each.sampled for each in first.verdicts] == [40] * 4
    assert first.state == "drift"
    database.close()


def test_a_process_that_stood_still_goes_on_with_the_last_hours(watched: Watched) -> None:
    """It does not go through the night, and its history stays bounded."""
    watched.minute(_MANY)
    watched.clock.now += 100 * HOUR_S
    watched.minute(_MANY, offset=3.0)
    assert watched.states == ["ok", "unknown", "drift"]
    assert len(watched.watch.status.verdicts) < MAX_VERDICTS


def test_a_clock_that_was_wrong_stops_no_watch(watched: Watched) -> None:
    """Set back by a year, the watch goes on with the hour before; by a minute, it waits for the next window."""
    watched.clock.now += 365 * 24 * HOUR_S
    watched.minute(_MANY)
    assert not watched.watch.look(watched.clock.now - 60)
    watched.clock.now -= 365 * 24 * HOUR_S
    assert watched.minute(_MANY, offset=3.0)
    assert (watched.watch.status.state, watched.watch.status.seen) == ("drift", watched.clock.now)


def test_without_the_database_the_own_traffic_is_watched(watched: Watched) -> None:
    """What waits in memory is enough, where the database has been gone for five minutes."""
    watched.history = History(Database("sqlite:////nowhere/at/all.sqlite"), watched.writer.attempted)
    watched.watch = watched.new_watch()
    serve(watched.traffic, _MANY, 1, offset=3.0)
    watched.clock.now += 60
    began = watched.clock.now
    for seconds, expected in ((0, []), (299, []), (300, ["drift"])):
        assert watched.watch.look(began + seconds) is bool(expected)
        assert watched.states == expected
    watched.clock.now += 300
    serve(watched.traffic, _MANY, 2)
    watched.clock.now += 60
    watched.watch.look(watched.clock.now)
    assert watched.states == ["drift", "ok"]


def test_replicas_wait_for_a_database_and_for_what_others_had_to_keep(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While it cannot be read no window is judged by a part of its requests; nor after that until the others have stored theirs."""
    start = watched.clock.now
    other = TrafficStatistics(SERIES, 60, watched.clock)
    other.ranks = _RANKS
    watched.watch = DriftWatch(watched.traffic, _RANKS, watched.history, _LEVELS, start, storing_s=12)
    for traffic in (watched.traffic, other):
        serve(traffic, LEAST_REQUESTS, 1)
    assert watched.writer.store()
    gone = Database.file(tmp_path / "nowhere" / "statistics.sqlite")
    watched.clock.now += 75
    with monkeypatch.context() as patched:
        patched.setattr(watched.history, "_database", gone)
        assert not watched.watch.look(watched.clock.now)
    for seconds, expected in ((1, []), (11, []), (12, [2 * LEAST_REQUESTS])):
        watched.watch.look(watched.clock.now + seconds)
        assert [each.sampled for each in watched.watch.status.verdicts] == expected
        StatisticsWriter(
            watched.database, Retention.parse("6h,7d,365d"), lambda: [watched.traffic, other], 10, watched.clock
        ).store()


def _tested(change: dict[int, Floats | float], n: int = 100) -> WindowTest:
    values = request_values(batch(n, seed=5))
    for column, value in change.items():
        values[:, column] = value
    return WindowTest.of(WindowScores.of(_RANKS, values), _RANKS)


def test_affected_layers_come_in_the_order_of_the_network() -> None:
    """Each with the quantity that stands out most, and how: columns are mean, std and l2 of five sides, then ratio and cosine."""
    values = request_values(batch(100, seed=5))
    far = values.max() + 10
    test = _tested({15: -1.0, 5: far})  # the ratio of the add; the std of the norm before
    norm, add = affected_layers(test, SERIES.layout, _LEVELS.drift)
    assert (norm.layer, norm.side, norm.statistic, norm.change) == ("norm", "before", "request_std", "higher")
    assert (add.layer, add.side, add.statistic, add.change) == ("add", None, "residual_ratio", "lower")
    assert norm.effect > 2 > -2 > add.effect
    assert max(norm.p_value, add.p_value) <= _LEVELS.drift


def test_every_layer_has_a_score() -> None:
    """That of its smallest p-value, and of requests that are undefined where they are; the largest is that of the window."""
    far = request_values(batch(100, seed=5)).max() + 10
    test = _tested({15: -1.0, 5: far})
    scores = layer_scores(test, SERIES.layout)
    affected = {each.layer: -np.log10(each.p_value) for each in affected_layers(test, SERIES.layout, _LEVELS.drift)}
    assert scores == pytest.approx(affected)
    assert max(scores.values()) == test.score
    undefined = layer_scores(_tested({2: np.nan}), SERIES.layout)
    assert list(undefined) == ["norm", "add"]
    assert undefined["norm"] < 2
    assert undefined["add"] > 10


def test_a_window_has_the_state_of_its_stretch(watched: Watched) -> None:
    """Each of several that are put together has the state of all of them; before they are enough, that of the last stretch."""
    start = int(watched.clock.now)
    assert watched.watch.status.state_at(start) == "unknown"
    for minute in range(8):
        watched.minute(10, offset=3.0 if minute > 2 else 0.0)
    assert watched.states == ["ok", "drift"]
    assert [watched.watch.status.state_at(start + 60 * minute) for minute in range(8)] == ["ok"] * 3 + ["drift"] * 5
    assert watched.watch.status.state_at(start - 60) == "unknown"


def test_a_change_of_spread_is_named_so() -> None:
    """Values that are all like the median are narrower, values at both ends wider."""
    values = request_values(batch(400, seed=999))[:, 5]
    middle, ends = np.quantile(values, [0.49, 0.51]), np.quantile(values, [0.02, 0.98])
    for two, expected in ((middle, "narrower"), (ends, "wider")):
        (found,) = affected_layers(_tested({5: np.resize(two, 100)}), SERIES.layout, _LEVELS.drift)
        assert (found.layer, found.statistic, found.change) == ("norm", "request_std", expected)


def test_where_values_are_undefined_comes_first() -> None:
    """One request with NaN from a layer on names that layer, at whatever level."""
    values = request_values(batch(100, seed=5))[:, 2].copy()
    values[0] = np.nan
    (found,) = affected_layers(_tested({2: values}), SERIES.layout, _LEVELS.drift)
    assert (found.layer, found.side, found.change) == ("add", "identity", "undefined")
