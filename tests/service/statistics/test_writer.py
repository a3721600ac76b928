"""What happens to statistics while the database does not take them: they wait, bounded and counted, and are stored later."""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, event, select

from models.artifact import load_artifact
from models.statistics.layers import BatchReducer, RunOutputs, SideLayout
from service.settings import Settings
from service.statistics import archive
from service.statistics import database as databases
from service.statistics import writer as writers
from service.statistics.database import MIGRATIONS, Database, windows_table
from service.statistics.history import History
from service.statistics.pending import StoredPart
from service.statistics.retention import HOUR_S, Retention
from service.statistics.series import Series
from service.statistics.store import StatisticsStore
from service.statistics.traffic import TrafficStatistics
from service.statistics.writer import StatisticsWriter
from tests.conftest import SmallRepository
from tests.service.statistics.made import LAYOUT, SERIES, Clock, activations, serve

_RETENTION = Retention.parse("6h,7d,365d")


class Service:
    """Traffic that is stored in a file when the test says so."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.database = Database.file(path)
        self.traffic = TrafficStatistics(SERIES, 60, self.clock)
        self.writer = StatisticsWriter(self.database, _RETENTION, lambda: [self.traffic], 10, self.clock)
        self.writer.attempted.set()
        self.history = History(self.database, self.writer.attempted)
        self.seed = 0

    def serve(self, minutes: int = 1) -> None:
        """One request in each minute."""
        for _ in range(minutes):
            self.clock.now += 60
            serve(self.traffic, 1, self.seed)
            self.seed += 1

    def sampled(self) -> int:
        """As a query sees it."""
        return self.history.read(self.traffic, self.clock.now - 86_400, self.clock.now + 60).sampled


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """With a file that it is not worth waiting for."""
    monkeypatch.setattr(databases, "_WAIT_S", 0.05)
    opened = Service(tmp_path / "statistics.sqlite")
    yield opened
    opened.database.close()


def test_a_locked_database_is_waited_for(service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While another program holds the lock nothing fails and nothing is lost; one warning says so, one that it is over."""
    service.serve()
    assert service.writer.store()
    other = sqlite3.connect(tmp_path / "statistics.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(3):
        service.serve()
        assert not service.writer.store()
        assert not service.writer.storing
    assert service.sampled() == 4
    assert service.traffic.waiting == 3
    other.execute("COMMIT")
    other.close()
    assert service.writer.store()
    assert (service.sampled(), service.traffic.waiting, service.traffic.dropped.storage) == (4, 0, 0)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.partition(" (")[0] for text in warnings] == ["statistics cannot be stored", "statistics are stored again"]
    assert "locked" in warnings[0]


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    """Where the file cannot grow, what is stored stays readable, and storing goes on once there is room."""
    pages = [30]

    def limit(connection: sqlite3.Connection, record: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages[0]}")

    event.listen(Engine, "connect", limit)
    try:
        service = Service(tmp_path / "statistics.sqlite")
        stored = 0
        while service.writer.storing:
            service.serve()
            service.writer.store()
            stored += 1
        assert stored > 2
        service.serve(5)
        assert service.sampled() == stored + 5
        pages[0] = 10_000
        service.database.forget_connections()  # each has the limit that held when it was opened
        assert service.writer.store()
        assert (service.sampled(), service.traffic.waiting) == (stored + 5, 0)
        service.database.close()
    finally:
        event.remove(Engine, "connect", limit)


def test_a_database_that_is_gone_is_made_again(service: Service, tmp_path: Path) -> None:
    """Replaced by something that is no database, the file is left alone and waited for; once that is gone it is made again."""
    service.serve()
    assert service.writer.store()
    (tmp_path / "statistics.sqlite").unlink()
    (tmp_path / "statistics.sqlite").write_bytes(b"no database" * 1000)
    service.serve()
    assert not service.writer.store()
    assert (tmp_path / "statistics.sqlite").read_bytes() == b"no database" * 1000
    assert not service.history.read(service.traffic, service.clock.now - 600, service.clock.now).complete
    (tmp_path / "statistics.sqlite").unlink()
    assert service.writer.store()
    assert service.history.read(service.traffic, service.clock.now - 600, service.clock.now + 60).complete


@pytest.mark.parametrize("endings", [("",), ("", "-wal"), ("", "-wal", "-shm")])
@pytest.mark.parametrize("reading", [False, True])
def test_a_deleted_file_is_made_again(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture, endings: tuple[str, ...], reading: bool
) -> None:
    """Deleted while the service runs and even while somebody reads it, the file is there again after the next storing, sound,
    with all windows that are still in memory, and grows; a warning says so once.
    """
    path = tmp_path / "statistics.sqlite"
    service.serve(3)
    assert service.writer.store()  # the first minute ended some time ago and is not in memory any more
    with service.database.reading() if reading else nullcontext() as connection:
        if connection is not None:
            connection.execute(select(windows_table.c.start)).all()
        for ending in endings:
            path.with_name(path.name + ending).unlink()
        assert service.writer.store()
        assert _sampled_in(path) == 2
        service.serve(2)
        assert service.writer.store()
        assert _sampled_in(path) == 4
    service.serve()
    assert service.writer.store()
    assert _sampled_in(path) == service.sampled() == 5
    assert caplog.text.count("deleted or replaced") == 1
    assert service.traffic.dropped.storage == 0


def test_a_file_that_was_put_in_place_of_another_is_used(service: Service, tmp_path: Path) -> None:
    """A backup that is moved to the place of the file while the service runs is read and added to from then on."""
    path, backup = tmp_path / "statistics.sqlite", Service(tmp_path / "backup.sqlite")
    backup.clock.now -= HOUR_S
    backup.serve(7)
    assert backup.writer.store()
    backup.database.close()
    service.serve(3)
    assert service.writer.store()
    (tmp_path / "backup.sqlite").replace(path)
    service.serve()
    assert service.writer.store()
    assert _sampled_in(path) == service.sampled() == 10  # of the backup, of two minutes that were in memory, and the new one


def _sampled_in(path: Path) -> int:
    """As another program reads the file, which is sound."""
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(other.execute("SELECT sum(sampled) FROM windows").fetchone()[0])


def test_what_waits_is_bounded_and_counted(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a database the oldest minutes are dropped once the newer ones fill the memory, and counted; the newest are stored
    later. Hours of channels likewise, from the fourth on.
    """
    monkeypatch.setattr("service.statistics.traffic._MAX_PENDING_BYTES", 1_000_000)
    service.serve()
    assert service.writer.store()
    other = sqlite3.connect(tmp_path / "statistics.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    service.serve(300)
    service.traffic.absorb()
    waiting, dropped = service.traffic.waiting, service.traffic.dropped
    assert 10 < waiting < 290
    assert (dropped.storage, dropped.requests) == (300 - waiting, 300 - waiting)
    hours = service.traffic.pending_channels(0, 4e9)
    assert len(hours) == 3
    assert dropped.channels == 300 - sum(hour.sampled for hour in hours)
    other.execute("COMMIT")
    other.close()
    assert service.writer.store()
    assert (service.sampled(), service.traffic.waiting) == (1 + waiting, 0)


def test_what_comes_too_fast_to_merge_is_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches wait for merging in bounded memory: those that do not fit are left out and counted, served requests are not."""
    monkeypatch.setattr("service.statistics.traffic._MAX_ARRIVED_BYTES", 3000)
    monkeypatch.setattr("service.statistics.traffic._PROMPT_BYTES", 1000)
    woken = threading.Event()
    traffic = TrafficStatistics(SERIES, 60, Clock(), woken.set)
    for seed in range(10):
        serve(traffic, 1, seed)
    assert woken.is_set()
    taken = 10 - traffic.dropped.backlog
    assert 1 <= taken <= 5
    assert traffic.last_window() is None  # it has not ended
    (part,) = traffic.pending(0, 4e9, sketches=False)
    assert (part.requests, part.sampled) == (10, taken)
    serve(traffic, 1, 11)
    assert traffic.pending(0, 4e9, sketches=False)[0].sampled == taken + 1


def test_threads_may_count_at_once() -> None:
    """What several threads count while another merges is all there."""
    traffic = TrafficStatistics(SERIES, 60, Clock())
    done = threading.Event()

    def merge() -> None:
        while not done.is_set():
            traffic.absorb()

    def count(seed: int) -> None:
        for i in range(20):
            serve(traffic, 2, seed + i)

    merger = threading.Thread(target=merge)
    merger.start()
    threads = [threading.Thread(target=count, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    merger.join()
    (part,) = traffic.pending(0, 4e9, sketches=False)
    assert (part.requests, part.sampled, traffic.dropped.backlog) == (160, 160, 0)


def test_channels_are_taken_from_one_batch_in_ten_seconds() -> None:
    """Listing channels costs a run more, so few runs do; those count for their hour."""
    clock = Clock()
    traffic = TrafficStatistics(SERIES, 60, clock)
    for second in range(60):
        clock.now += 1
        serve(traffic, 1, second)
    (hour,) = traffic.pending_channels(0, 4e9)
    assert (hour.sampled, hour.seconds) == (6, 3600)


def test_a_clock_that_was_set_back_stops_nothing(service: Service) -> None:
    """Channels are listed and old windows merged at once, not when it has caught up."""
    service.clock.now += 365 * 24 * HOUR_S
    service.serve()
    assert service.writer.store()
    service.clock.now -= 365 * 24 * HOUR_S
    now = service.clock.now
    for minutes in (8 * 60, 0):
        service.clock.now = now - 60 * minutes
        service.serve()
        assert service.writer.store()
    period = service.history.read(service.traffic, now - 24 * HOUR_S, now + HOUR_S)
    assert [part.seconds for part in period.parts] == [HOUR_S, 60]
    assert service.history.read_channels(service.traffic, now - 24 * HOUR_S, now + HOUR_S).sampled == 2


def test_an_odd_batch_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """A batch of other layers than those of the model is logged once and counted each time; the batches around it count."""
    traffic = TrafficStatistics(SERIES, 60, Clock())
    tensors = activations(2, seed=0)
    odd = BatchReducer(SideLayout(LAYOUT.layers[:1])).reduce(RunOutputs(tensors), {"input": tensors["a"]})
    for seed in range(3):
        serve(traffic, 1, seed)
        traffic.add(odd)
    (part,) = traffic.pending(0, 4e9, sketches=False)
    assert (part.requests, part.sampled) == (9, 3)
    assert (traffic.dropped.failed, traffic.dropped.backlog, traffic.dropped.storage) == (6, 0, 0)
    assert caplog.text.count("cannot be counted") == 1
    alone = TrafficStatistics(SERIES, 60, Clock())
    for seed in range(3):
        serve(alone, 1, seed)
    (expected,) = alone.pending(0, 4e9, sketches=False)
    np.testing.assert_allclose(np.frombuffer(part.moments), np.frombuffer(expected.moments), rtol=1e-12)


class Failing(TrafficStatistics):
    """Fails at the first attempts to merge, in a way that nobody thought of: without even a message."""

    def __init__(self, failures: int) -> None:
        super().__init__(SERIES, 60, Clock())
        self.left, self.merged = failures, threading.Event()

    def absorb(self) -> None:
        if self.left:
            self.left -= 1
            raise LookupError
        super().absorb()
        self.merged.set()

    def changed(self) -> list[StoredPart]:
        self.absorb()
        return super().changed()


def test_no_exception_ends_the_thread_that_stores(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is raised while storing is logged with its traceback, shown as not storing, and storing is tried again."""
    traffic, database = Failing(2), Database("sqlite://")
    states: list[bool] = []

    def all_traffic() -> list[TrafficStatistics]:
        states.append(writer.storing)
        return [traffic]

    writer = StatisticsWriter(database, _RETENTION, all_traffic, 0.001, Clock())
    serve(traffic, 1, seed=0)
    writer.start()
    assert traffic.merged.wait(30)
    writer.close()
    assert writer.storing
    assert states[:4] == [True, False, False, True]
    assert traffic.waiting == 0
    assert "statistics cannot be stored (LookupError)" in caplog.text
    assert "Traceback" in caplog.text
    database.close()


def test_models_are_prepared_for_queries_when_they_are_new_and_every_hour(caplog: pytest.LogCaptureFixture) -> None:
    """Each once, after its windows were stored; one that fails is logged, and tried in the next hour."""
    database, clock = Database("sqlite://"), Clock()
    models = [TrafficStatistics(Series(name, "1", name, LAYOUT), 60, clock) for name in "ab"]
    prepared: list[str] = []

    def prepare(traffic: TrafficStatistics) -> None:
        assert not traffic.waiting
        prepared.append(traffic.series.model)
        if traffic is models[1]:
            raise LookupError

    served = models[:1]
    writer = StatisticsWriter(database, _RETENTION, lambda: served, 10, clock, prepare)
    for seconds, expected in ((0, "a"), (60, ""), (0, "b"), (HOUR_S, "ab"), (0, "")):
        served = models[: 2 if expected == "b" else len(served)]
        clock.now += seconds
        for traffic in served:
            serve(traffic, 1, seed=0)
        assert writer.store()
        writer.prepare()
        assert "".join(prepared) == expected
        prepared.clear()
    assert "statistics of model b cannot be prepared" in caplog.text
    database.close()


def test_a_new_model_wakes_the_thread_that_stores(small_repository: SmallRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is prepared at once, however long the interval is, and the store ends without waiting for it."""
    store = StatisticsStore(Settings(statistics_flush_s=1000))
    prepared = threading.Event()
    monkeypatch.setattr(store.writer, "_prepare", lambda traffic: prepared.set())
    store.start()
    assert store.writer.attempted.wait(30)
    store.traffic_of(load_artifact(small_repository.folder / "text" / "1").manifest, LAYOUT)
    assert prepared.wait(30)
    store.close()


def test_no_exception_ends_the_thread_that_merges(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be merged now is logged, and merging goes on."""
    monkeypatch.setattr("service.statistics.store._MERGE_S", 0.001)
    traffic = Failing(2)
    monkeypatch.setattr(StatisticsStore, "traffic", lambda store: [traffic])
    store = StatisticsStore(Settings(statistics_flush_s=1000))
    store.start()
    assert traffic.merged.wait(30)
    store.close()
    assert "statistics of model made cannot be merged" in caplog.text


def test_what_fails_to_merge_old_windows_stops_no_storing(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While old windows cannot be merged new ones are stored, and a warning says so; merging is tried again a minute later."""
    working = archive.roll_up

    def broken(*arguments: object) -> None:
        raise ValueError("")

    monkeypatch.setattr(writers, "roll_up", broken)
    for _ in range(3):
        service.serve()
        assert service.writer.store()
    assert service.writer.storing
    assert service.traffic.waiting == 0
    assert caplog.text.count("old statistics cannot be merged (ValueError)") == 3
    monkeypatch.setattr(writers, "roll_up", working)
    service.clock.now += 8 * HOUR_S
    assert service.writer.store()
    period = service.history.read(service.traffic, service.clock.now - 86_400, service.clock.now)
    assert (period.sampled, [part.seconds for part in period.parts]) == (3, [HOUR_S])


class Hanging(TrafficStatistics):
    """Storing it takes as long as the test wants, as if the database did not answer."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(SERIES, 60, clock)
        self.reached, self.released = threading.Event(), threading.Event()

    def changed(self) -> list[StoredPart]:
        self.reached.set()
        assert self.released.wait(60)
        return super().changed()


def test_storing_that_takes_too_long_is_shown() -> None:
    """From three intervals and 5 s on an attempt that has not ended counts as one that failed, until it ends."""
    clock, database = Clock(), Database("sqlite://")
    traffic = Hanging(clock)
    writer = StatisticsWriter(database, _RETENTION, lambda: [traffic], 10, clock)
    storing = threading.Thread(target=writer.store)
    storing.start()
    assert traffic.reached.wait(60)
    clock.now += 35
    assert writer.storing
    clock.now += 1
    assert not writer.storing
    traffic.released.set()
    storing.join()
    assert writer.storing
    database.close()


def test_a_database_that_does_not_answer_keeps_no_process_from_ending(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end waits for the last storing, but not for ever; what is lost is in the log."""
    monkeypatch.setattr(writers, "_END_S", 0.01)
    clock, database = Clock(), Database("sqlite://")
    traffic = Hanging(clock)
    writer = StatisticsWriter(database, _RETENTION, lambda: [traffic], 1000, clock)
    writer.start()
    assert traffic.reached.wait(60)
    writer.close()
    assert "the last statistics are lost" in caplog.text
    traffic.released.set()
    monkeypatch.setattr(writers, "_END_S", 60)
    writer.close()
    database.close()


_VERSION_1 = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
INSERT INTO schema_version VALUES (1);
CREATE TABLE series (id INTEGER NOT NULL, fingerprint VARCHAR(64) NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
    sides INTEGER NOT NULL, adds INTEGER NOT NULL, layout TEXT NOT NULL, PRIMARY KEY (id), UNIQUE (fingerprint));
CREATE TABLE windows (series INTEGER NOT NULL, start BIGINT NOT NULL, seconds INTEGER NOT NULL, part BIGINT NOT NULL,
    requests BIGINT NOT NULL, sampled BIGINT NOT NULL, moments BLOB NOT NULL, sketches BLOB NOT NULL,
    PRIMARY KEY (series, start, seconds, part));
CREATE TABLE channels (series INTEGER NOT NULL, start BIGINT NOT NULL, seconds INTEGER NOT NULL, part BIGINT NOT NULL,
    requests BIGINT NOT NULL, sampled BIGINT NOT NULL, moments BLOB NOT NULL, PRIMARY KEY (series, start, seconds, part));
"""


def test_a_file_of_every_released_version_opens(service: Service, tmp_path: Path) -> None:
    """What an earlier release stored is read and added to; the file then has the newest version."""
    donor = TrafficStatistics(SERIES, 60, Clock())
    serve(donor, 3, seed=0)
    (part,) = donor.changed()
    old = sqlite3.connect(tmp_path / "statistics.sqlite")
    old.executescript(_VERSION_1)
    old.execute("INSERT INTO series VALUES (7, ?, 'made', '1', ?, ?, '[]')", (SERIES.fingerprint, SERIES.sides, SERIES.adds))
    old.execute("INSERT INTO windows VALUES (7, ?, 60, ?, 3, 3, ?, ?)", (part.start, part.part, part.moments, part.sketches))
    old.commit()
    old.close()
    assert service.writer.store()
    service.serve()
    assert service.writer.store()
    assert service.sampled() == 4
    with sqlite3.connect(tmp_path / "statistics.sqlite") as now:
        assert now.execute("SELECT version FROM schema_version").fetchone() == (len(MIGRATIONS),)
        made = {row[1]: row[2] for row in now.execute("PRAGMA table_info(windows)")}
        assert made == {
            **dict.fromkeys(("series", "seconds"), "INTEGER"),
            **dict.fromkeys(("start", "part", "requests", "sampled"), "BIGINT"),
            **dict.fromkeys(("moments", "sketches", "scores"), "BLOB"),
        }
    now.close()


def test_a_file_of_a_later_release_is_left_alone(service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not written; the statistics wait in memory, and the warning says what to do."""
    later = sqlite3.connect(tmp_path / "statistics.sqlite")
    later.executescript("CREATE TABLE schema_version (version INTEGER NOT NULL); INSERT INTO schema_version VALUES (99);")
    later.close()
    service.serve()
    assert not service.writer.store()
    assert "use a later release" in caplog.text
    assert service.sampled() == 1
