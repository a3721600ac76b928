"""Windows in a database: found again, merged into hours and days, deleted, and never counted twice."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Table, func, select

from models.statistics.drift import ReferenceRanks, WindowScores
from models.statistics.request_values import request_values
from service.statistics import writer as writers
from service.statistics.archive import roll_up
from service.statistics.database import Database, channels_table, windows_table
from service.statistics.history import History
from service.statistics.retention import DAY_S, HOUR_S, Retention
from service.statistics.traffic import TrafficStatistics
from service.statistics.writer import StatisticsWriter
from tests.service.statistics.made import SERIES, Clock, batch, serve

_RETENTION = Retention.parse("2h,3d,30d")


class Service:
    """One process: its traffic, its writer and what it reads, by a clock that the test moves."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.traffic = TrafficStatistics(SERIES, 60, clock)
        self.writer = StatisticsWriter(database, _RETENTION, lambda: [self.traffic], 10, clock)
        self.writer.attempted.set()
        self.history = History(database, self.writer.attempted)


@pytest.fixture
def database() -> Iterator[Database]:
    """In memory."""
    opened = Database("sqlite://")
    yield opened
    opened.close()


def _lengths(database: Database) -> dict[int, int]:
    """Length of windows in seconds -> their number."""
    with database.reading() as connection:
        c = windows_table.c
        return {seconds: int(count) for seconds, count in connection.execute(select(c.seconds, func.count()).group_by(c.seconds))}


def test_minutes_become_hours_and_days(database: Database) -> None:
    """Merged into coarser windows, the totals, the extremes and the number of requests stay what they were."""
    clock = Clock()
    service = Service(database, clock)
    start = clock.now
    for minute in range(90):
        clock.now = start + 60 * minute
        serve(service.traffic, 2, seed=minute)
        assert service.writer.store()
    before = service.history.read(service.traffic, start, start + 2 * HOUR_S, sketches=True)
    assert _lengths(database) == {60: 90}
    for days, expected in ((0.2, {HOUR_S: 2}), (5, {DAY_S: 1})):
        clock.now = start + days * DAY_S
        assert service.writer.store()
        assert _lengths(database) == expected
        after = service.history.read(service.traffic, start - DAY_S, start + 2 * DAY_S, sketches=True)
        assert (after.requests, after.sampled) == (before.requests, before.sampled) == (180, 180)
        for one, other in ((after.total().elements, before.total().elements), (after.total().values, before.total().values)):
            for name, column in vars(one).items():
                np.testing.assert_allclose(column, getattr(other, name), rtol=1e-9, atol=1e-12, err_msg=name)
        quantities = list(range(SERIES.values))
        now, then = (period.sketches(quantities) for period in (after, before))
        assert now.counts.tolist() == then.counts.tolist()
        np.testing.assert_array_equal(now.quantiles([0.0, 1.0]), then.quantiles([0.0, 1.0]))
    channels = service.history.read_channels(service.traffic, start + 7, start + 8)
    day = start // DAY_S * DAY_S
    assert (channels.sampled, channels.since, channels.until, channels.complete) == (180, day, day + DAY_S, True)
    assert channels.moments is not None
    assert channels.moments.row(0).count.tolist() == [90 * 2 * 4] * 3


def test_a_stretch_is_widened_to_the_hours_and_days_that_it_reaches_into(database: Database) -> None:
    """Old windows were merged into hours and days, of which no part can be told: those that a stretch touches count whole, and
    the period says so; a stretch beside them has nothing and stays as it was asked.
    """
    clock = Clock()
    service = Service(database, clock)
    start = int(clock.now)
    day = start // DAY_S * DAY_S
    serve(service.traffic, 2, seed=0)
    asked = start - 5 * HOUR_S + 30, start + 7
    for days, covered in (
        (0.0, (asked[0] - 30, start + 60)),
        (0.2, (asked[0] - 30, start + HOUR_S)),
        (5, (day, day + DAY_S)),
    ):
        clock.now = start + days * DAY_S
        assert service.writer.store()
        period = service.history.read(service.traffic, *asked)
        assert (period.requests, period.since, period.until) == (2, *covered)
    period = service.history.read(service.traffic, day - 600, day)
    assert (period.requests, period.since, period.until) == (0, day - 600, day)
    period = service.history.read(service.traffic, day + DAY_S, day + DAY_S + 60)
    assert (period.requests, period.since, period.until) == (0, day + DAY_S, day + DAY_S + 60)


def test_the_database_stays_bounded(database: Database) -> None:
    """Over 100 days the number of windows reaches its bound and stays there; what is older than the last bound is gone."""
    clock = Clock()
    service = Service(database, clock)
    start = clock.now
    counts = []
    for step in range(100 * 4):
        clock.now = start + step * 6 * HOUR_S
        serve(service.traffic, 1, seed=step)
        assert service.writer.store()
        counts.append(sum(_lengths(database).values()))
    most = 1 + 3 * 4 + 4 + 30  # minutes of two hours, hours of three days and the day that is not over, days
    assert max(counts) == max(counts[200:]) <= most
    with database.reading() as connection:
        oldest = connection.execute(select(func.min(windows_table.c.start))).scalar_one()
        assert connection.execute(select(func.count()).select_from(channels_table)).scalar_one() <= most
    assert oldest >= clock.now - 31 * DAY_S


def _bytes(database: Database) -> int:
    """Of all moments and sketches that are stored."""
    with database.reading() as connection:
        w, c = windows_table.c, channels_table.c
        of_windows = select(func.sum(func.length(w.moments) + func.length(w.sketches)))
        of_channels = select(func.sum(func.length(c.moments)))
        return sum(connection.execute(query).scalar_one() or 0 for query in (of_windows, of_channels))


def test_in_memory_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a service keeps in memory never takes more than its bound, of whatever length the windows are: the oldest are deleted,
    and what is left is whole. A file keeps all.
    """
    bound = 30_000
    monkeypatch.setattr(writers, "_MEMORY_BYTES", bound)
    for opened in (Database("sqlite://"), Database.file(tmp_path / "statistics.sqlite")):
        clock = Clock()
        service = Service(opened, clock)
        start, sizes = clock.now, []
        for step in range(40):
            clock.now = start + step * HOUR_S / 2
            serve(service.traffic, 1, seed=step)
            assert service.writer.store()
            sizes.append(_bytes(opened))
        stored = service.history.read(service.traffic, start - DAY_S, clock.now + 60)
        assert stored.complete
        if opened.in_memory:
            assert max(sizes) <= bound
            assert min(sizes[20:]) > bound / 2
            first = stored.parts[0].start
            assert stored.requests == sum(start + step * HOUR_S / 2 >= first for step in range(40))
        else:
            assert max(sizes) > bound
            assert stored.requests == 40
        opened.close()


def test_the_file_stays_bounded(tmp_path: Path) -> None:
    """Over simulated weeks the file reaches its size and stays there, though all is written, merged and deleted; its log takes no
    more than the thousand pages of 4 KiB after which SQLite begins it anew, and one transaction.
    """
    clock = Clock()
    path = tmp_path / "statistics.sqlite"
    database = Database.file(path)
    traffic = TrafficStatistics(SERIES, 900, clock)
    writer = StatisticsWriter(database, Retention.parse("1h,1d,3d"), lambda: [traffic], 10, clock)
    start, pages, on_disk = clock.now, [], []
    for step in range(120):  # 20 days
        clock.now = start + step * 4 * HOUR_S
        for quarter in range(2):
            clock.now += 900 * quarter
            serve(traffic, 1, seed=step)
            assert writer.store()
        with closing(sqlite3.connect(path)) as other:
            pages.append(other.execute("PRAGMA page_count").fetchone()[0])
        on_disk.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
    filled = 6 * 6  # the steps of 6 days: all that is kept for 3 days is there, and some has been deleted
    assert max(pages[filled:]) <= 1.1 * max(pages[:filled])
    assert max(on_disk) <= 4096 * (max(pages) + 1.1 * 1000)
    database.close()


def test_storing_again_counts_once(database: Database) -> None:
    """A window that goes on growing replaces its stored part; what waits and what is stored are never added up twice."""
    clock = Clock()
    service = Service(database, clock)
    for second in range(30):
        clock.now += 1
        serve(service.traffic, 1, seed=second)
        assert service.history.read(service.traffic, clock.now - 60, clock.now).requests == second + 1
        assert service.writer.store()
        assert service.history.read(service.traffic, clock.now - 60, clock.now).requests == second + 1
    assert _lengths(database) == {60: 1}


def test_parts_of_several_processes_add_up(database: Database) -> None:
    """Two processes that store parts of the same windows see the sum, also after one of them has merged all into hours."""
    clock = Clock()
    services = [Service(database, clock) for _ in range(2)]
    start = clock.now
    for minute in range(5):
        clock.now = start + 60 * minute
        for i, service in enumerate(services):
            serve(service.traffic, 1 + i, seed=minute)
            assert service.writer.store()
    assert _lengths(database) == {60: 10}
    for service in services:
        assert service.history.read(service.traffic, start, clock.now + 60).sampled == 15
    clock.now = start + 6 * HOUR_S
    roll_up(database, _RETENTION, clock.now)
    roll_up(database, _RETENTION, clock.now)
    assert _lengths(database) == {HOUR_S: 1}
    for service in services:
        assert service.writer.store()
        assert service.history.read(service.traffic, start, start + HOUR_S).sampled == 15


@pytest.mark.parametrize(
    ("table", "column", "broken"),
    [
        (windows_table, "moments", b"short"),
        (windows_table, "moments", b""),
        (windows_table, "moments", b"\xff" * 8 * (8 * SERIES.sides + 5 * SERIES.values)),
        (windows_table, "sketches", b"\xff" * 100),
        (channels_table, "moments", b"not compressed"),
    ],
)
def test_a_row_that_cannot_be_read_is_deleted(
    database: Database, caplog: pytest.LogCaptureFixture, table: Table, column: str, broken: bytes
) -> None:
    """Found when it is to be merged, a warning names its place; the rows beside it are merged, and storing goes on."""
    clock = Clock()
    services = [Service(database, clock) for _ in range(2)]
    start = clock.now
    for service in services:
        serve(service.traffic, 2, seed=0)
        assert service.writer.store()
    with database.writing() as connection:
        part = connection.execute(select(func.min(table.c.part))).scalar_one()
        connection.execute(table.update().where(table.c.part == part).values({column: broken}))
    coarse_s = HOUR_S if table is windows_table else DAY_S
    clock.now += 5 * coarse_s
    assert services[0].writer.store()
    first = int(start) // coarse_s * coarse_s
    assert f"1 of 2 parts in table {table.name}, series 1, from {first} on, cannot be read" in caplog.text
    with database.reading() as connection:
        c = table.c
        assert connection.execute(select(c.seconds, c.sampled).where(c.series == 1)).all() == [(coarse_s, 2)]
    serve(services[0].traffic, 1, seed=1)
    assert services[0].writer.store()
    assert services[0].traffic.waiting == 0


def test_merging_ends_when_the_process_does(database: Database) -> None:
    """Between two windows it looks whether it is to stop; the next time it goes on from there."""
    clock = Clock()
    service = Service(database, clock)
    for _ in range(5):
        serve(service.traffic, 1, seed=0)
        assert service.writer.store()
        clock.now += HOUR_S / 2
    looks = chain([False, False], repeat(True))
    roll_up(database, _RETENTION, clock.now + DAY_S, lambda: next(looks))
    assert _lengths(database) == {HOUR_S: 2, 60: 1}
    roll_up(database, _RETENTION, clock.now + DAY_S)
    assert _lengths(database) == {HOUR_S: 3}


@pytest.mark.parametrize("window_s", [60, 900, HOUR_S])
def test_every_window_is_stored_to_its_end(database: Database, window_s: int) -> None:
    """What is counted in the last second of a window is stored after its end, also where windows are kept no longer than one."""
    clock = Clock()
    retention = Retention.parse("1h,1d,30d")
    traffic = TrafficStatistics(SERIES, window_s, clock)
    writer = StatisticsWriter(database, retention, lambda: [traffic], 10, clock)
    start, served = clock.now, 0
    for window in range(1, 4):
        for before_end in (window_s / 2, 12, 1):
            clock.now = start + window * window_s - before_end
            serve(traffic, 1, seed=served)
            traffic.absorb()
            served += 1
            clock.now += 10
            assert writer.store()
    assert (traffic.waiting, traffic.dropped.storage) == (0, 0)
    with database.reading() as connection:
        assert connection.execute(select(func.sum(windows_table.c.requests))).scalar_one() == served


@pytest.mark.parametrize("window_s", [1, 60, HOUR_S])
@pytest.mark.parametrize(("late", "expected"), [(-61, 2), (-60, 2), (-59, 1), (0, 1), (1, 1), (90, 1)])
def test_what_waited_too_long_is_not_counted_twice(database: Database, window_s: int, late: int, expected: int) -> None:
    """What a part counted after it was stored comes too late once that may have been merged into an hour: then, and from a minute
    before on, it is dropped, however far merging has come.
    """
    clock = Clock()
    retention = Retention.parse("1h,1d,30d")
    traffic = TrafficStatistics(SERIES, window_s, clock)
    writer = StatisticsWriter(database, retention, lambda: [traffic], 10, clock)
    clock.now += HOUR_S - 1
    serve(traffic, 1, seed=0)
    assert writer.store()
    traffic.count(1)  # in the same window, the last of its hour
    traffic.absorb()
    clock.now += 1 + HOUR_S + late
    roll_up(database, retention, clock.now)
    assert writer.store()
    with database.reading() as connection:
        assert connection.execute(select(func.sum(windows_table.c.requests))).scalar_one() == expected
    assert traffic.waiting == 0


@pytest.mark.parametrize("text", ["", "1h", "6h,7d", "1m,7d,365d", "6h,1h,365d", "6h,7d,1d", "6h,7d,x", "0h,7d,365d"])
def test_retention_that_makes_no_sense_is_refused(text: str) -> None:
    """Three durations, each not shorter than what it is merged from, or a message that shows one."""
    with pytest.raises(ValueError, match=r"write|at least"):
        Retention.parse(text)


def _scores_of(service: Service, ranks: ReferenceRanks, since: float, until: float) -> list[WindowScores | None]:
    parts = service.history.read(service.traffic, since, until, scores=True).parts
    return [None if part.scores is None else WindowScores.from_bytes(part.scores, ranks) for part in parts]


def test_scores_are_stored_with_their_window_and_end_with_it(database: Database) -> None:
    """They come back as they were; an hour has none, nor has what was counted without a reference."""
    clock = Clock()
    service = Service(database, clock)
    start = clock.now
    ranks = ReferenceRanks.of(request_values(batch(40, seed=99)), SERIES.sides)
    serve(service.traffic, 3, seed=0)
    service.traffic.absorb()
    service.traffic.ranks = ranks
    clock.now += 60
    serve(service.traffic, 2, seed=1)
    serve(service.traffic, 2, seed=2)
    clock.now += 70
    assert service.writer.store()
    assert not service.traffic.pending(0, 4e9, sketches=False)
    none, found = _scores_of(service, ranks, start, start + 120)
    expected = WindowScores.of(ranks, np.concatenate([request_values(batch(2, seed=seed)) for seed in (1, 2)]))
    assert none is None
    assert found is not None
    assert found.to_bytes() == expected.to_bytes()
    assert [part.scores for part in service.history.read(service.traffic, start, start + 120).parts] == [None, None]
    clock.now += 3 * HOUR_S
    assert service.writer.store()
    assert _lengths(database) == {HOUR_S: 1}
    assert _scores_of(service, ranks, start, start + HOUR_S) == [None]


def test_scores_of_a_replaced_reference_do_not_mix(database: Database) -> None:
    """From the moment that the model has another reference, a window counts for that one alone."""
    service = Service(database, Clock())
    old, new = (ReferenceRanks.of(request_values(batch(40, seed)), SERIES.sides) for seed in (98, 99))
    for ranks, n in ((old, 3), (new, 2)):
        service.traffic.ranks = ranks
        serve(service.traffic, n, seed=n)
        service.traffic.absorb()
    assert _scores_of(service, old, 0, 4e9) == [None]
    (found,) = _scores_of(service, new, 0, 4e9)
    assert found is not None
    assert found.samples == 2


@pytest.mark.parametrize(
    "broken",
    [lambda blob: b"", lambda blob: blob[:-1], lambda blob: blob[:8] + b"\xff" * (len(blob) - 8), lambda blob: "text"],
    ids=["empty", "short", "overwritten", "text"],
)
@pytest.mark.parametrize(
    ("table", "column"), [(windows_table, "moments"), (channels_table, "moments"), (windows_table, "sketches")]
)
def test_a_row_that_cannot_be_read_is_left_out_of_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, table: Table, column: str, broken: Callable[[bytes], object]
) -> None:
    """Whatever stands in its place, the others are answered for, and the answer says that it is not complete; a warning tells why.
    A window whose sketches cannot be read counts but for the quantiles.
    """
    path, clock = tmp_path / "statistics.sqlite", Clock()
    database = Database.file(path)
    services = [Service(database, clock) for _ in range(2)]
    start = clock.now
    for i, service in enumerate(services):
        serve(service.traffic, 2 + i, seed=i)
        assert service.writer.store()
    with closing(sqlite3.connect(path)) as other:
        blob, part = other.execute(f"SELECT {column}, part FROM {table.name} WHERE sampled = 2").fetchone()
        other.execute(f"UPDATE {table.name} SET {column} = ? WHERE part = ?", (broken(blob), part))
        other.commit()
    reader = Service(database, clock)
    period = reader.history.read(reader.traffic, start, start + 60, sketches=True)
    channels = reader.history.read_channels(reader.traffic, start, start + 60)
    sketched = period.sketches([0]).counts.tolist()
    (step,) = period.steps(60)
    assert period.total().values.count[0] == period.pooled_by([step]).values.count[0, 0] == period.sampled
    expected = {
        "windows.moments": (3, False, [3], 5, True),
        "channels.moments": (5, True, [5], 3, False),
        "windows.sketches": (5, True, [3], 5, True),
    }[f"{table.name}.{column}"]
    assert (period.sampled, period.complete, sketched, channels.sampled, channels.complete) == expected
    assert channels.moments is not None
    assert "cannot be read and are left out" in caplog.text
    database.close()
