"""Statistics of several replicas in one real PostgreSQL."""

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
from sqlalchemy import Connection, Engine, event, text

from service.settings import Settings
from service.statistics import database as databases
from service.statistics.archive import roll_up
from service.statistics.database import MIGRATIONS, Database
from service.statistics.history import History
from service.statistics.retention import HOUR_S, Retention
from service.statistics.traffic import TrafficStatistics
from service.statistics.writer import StatisticsWriter
from tests.conftest import SmallRepository, running_server
from tests.networks import SENTENCES
from tests.service.statistics.made import SERIES, Clock, serve
from tests.service.statistics.postgresql import Postgresql, programs

_RETENTION = Retention.parse("1h,1d,30d")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgresql]:
    """A running server; skipped where no PostgreSQL is installed."""
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL is installed (Debian: apt-get install postgresql)")
    started = Postgresql(folder)
    try:
        started.start()
        yield started
    finally:
        started.remove()


@pytest.fixture
def url(server: Postgresql) -> str:
    """Of an empty database."""
    database = Database(server.url)
    with database.writing() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    database.close()
    return server.url


class Replica:
    """What one process of several has."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.database = Database(url)
        self.traffic = TrafficStatistics(SERIES, 60, clock)
        self.writer = StatisticsWriter(self.database, _RETENTION, lambda: [self.traffic], 10, clock)
        self.writer.attempted.set()
        self.history = History(self.database, self.writer.attempted)


@pytest.fixture
def clock() -> Clock:
    """Shared by all replicas."""
    return Clock()


@pytest.fixture
def replicas(url: str, clock: Clock) -> Iterator[list[Replica]]:
    """Two of them."""
    both = [Replica(url, clock) for _ in range(2)]
    yield both
    for replica in both:
        replica.database.close()


def _at_once(*calls: object) -> None:
    threads = [threading.Thread(target=call) for call in calls if callable(call)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_any_replica_answers_for_all(replicas: list[Replica], clock: Clock) -> None:
    """Each writes what it saw, at the same time and into the same windows; each answers with the sum, exactly."""
    start = clock.now
    alone = TrafficStatistics(SERIES, 60, clock)
    for minute in range(4):
        clock.now = start + 60 * minute
        for i, replica in enumerate(replicas):
            serve(replica.traffic, 3, seed=10 * minute + i)
            serve(alone, 3, seed=10 * minute + i)
        _at_once(*(replica.writer.store for replica in replicas))
    for replica in replicas:
        assert replica.writer.store()
    expected = alone.pending(start, start + 3600, sketches=False)
    for replica in replicas:
        period = replica.history.read(replica.traffic, start, start + 240, sketches=True)
        assert (period.requests, period.sampled, period.complete) == (24, 24, True)
        assert sum(part.sampled for part in expected) == 24
        assert period.sketches([0]).counts.tolist() == [24]
    first, second = (replica.history.read(replica.traffic, start, start + 240).total() for replica in replicas)
    np.testing.assert_array_equal(first.elements.mean, second.elements.mean)


def test_replicas_merge_old_windows_at_once(replicas: list[Replica], clock: Clock) -> None:
    """Two that merge the same windows into hours at the same time lose none and count none twice."""
    start = clock.now
    for minute in range(20):
        clock.now = start + 60 * minute
        for i, replica in enumerate(replicas):
            serve(replica.traffic, 1, seed=10 * minute + i)
            assert replica.writer.store()
    clock.now = start + 5 * HOUR_S
    _at_once(*(lambda replica=replica: roll_up(replica.database, _RETENTION, clock.now) for replica in replicas))
    for replica in replicas:
        assert replica.writer.store()
        period = replica.history.read(replica.traffic, start, start + HOUR_S)
        assert (period.requests, len(period.parts)) == (40, 1)


def test_replicas_make_the_tables_at_once(url: str) -> None:
    """Of several that start together on an empty database each finds the tables, made once."""
    databases = [Database(url) for _ in range(4)]
    _at_once(*(database.migrate for database in databases))
    with databases[0].reading() as connection:
        assert connection.execute(text("SELECT version FROM schema_version")).scalar_one() == len(MIGRATIONS)
    for database in databases:
        database.migrate()
        database.close()


def test_a_server_that_is_gone_is_waited_for(server: Postgresql, replicas: list[Replica], clock: Clock) -> None:
    """Stopped at once and started again: nothing fails, what was counted meanwhile waits and is stored."""
    replica = replicas[0]
    start = clock.now
    serve(replica.traffic, 1, seed=0)
    assert replica.writer.store()
    server.stop()
    try:
        for minute in range(1, 4):
            clock.now = start + 60 * minute
            serve(replica.traffic, 1, seed=minute)
            assert not replica.writer.store()
        period = replica.history.read(replica.traffic, start, clock.now + 60)
        assert not period.complete
        assert period.requests >= 3  # those that wait here
    finally:
        server.start()
    assert replica.writer.store()
    period = replica.history.read(replica.traffic, start, clock.now + 60)
    assert (period.requests, period.complete) == (4, True)
    assert replica.traffic.dropped.storage == 0


@pytest.mark.parametrize("moment", ["DELETE 1", "INSERT 1", "INSERT 2", "INSERT 3", "commit"])
def test_a_connection_that_is_killed_amid_storing_costs_nothing(replicas: list[Replica], clock: Clock, moment: str) -> None:
    """Its backend is ended by the administrator before a statement of the transaction or before its end: the attempt fails as
    a whole, the next one stores all, and nothing is counted twice.
    """
    replica, other = replicas
    alone = TrafficStatistics(SERIES, 60, clock)
    start = clock.now
    counts: Counter[str] = Counter()
    killed: list[int] = []

    def count(requests: int, seed: int) -> None:
        for traffic in (replica.traffic, alone):
            serve(traffic, requests, seed)

    def kill(pid: int) -> None:
        with other.database.reading() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        left = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
        while True:
            with other.database.reading() as connection:  # each sees a state of its own
                if not connection.execute(left, {"pid": pid}).scalar_one():
                    return

    def reach(what: str, connection: Connection) -> None:
        if what == moment and not killed:
            pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
            killed.append(pid)
            _at_once(lambda: kill(pid))

    def before_statement(connection: Connection, cursor: object, statement: str, *rest: object) -> None:
        word = statement.split(maxsplit=1)[0]
        counts[word] += 1
        reach(f"{word} {counts[word]}", connection)

    count(2, seed=0)
    assert replica.writer.store()
    count(3, seed=1)  # the stored part grows
    clock.now += 60
    count(4, seed=2)
    listeners: list[tuple[str, Callable[..., None]]] = [
        ("before_cursor_execute", before_statement),
        ("commit", lambda connection: reach("commit", connection)),
    ]
    for name, listener in listeners:
        event.listen(Engine, name, listener)
    try:
        assert not replica.writer.store()
        assert len(killed) == 1
        assert replica.writer.store()
    finally:
        for name, listener in listeners:
            event.remove(Engine, name, listener)
    assert replica.traffic.waiting == 0
    for reader in replicas:
        period = reader.history.read(reader.traffic, start, start + 120)
        assert (period.requests, period.sampled, period.complete) == (9, 9, True)
    expected = alone.pending(start, start + 120, sketches=False)
    stored = other.history.read(other.traffic, start, start + 120).parts
    assert [part.moments for part in stored] == [part.moments for part in expected]


@pytest.fixture
def frozen(server: Postgresql) -> Iterator[Callable[[], None]]:
    """Freezes the server; it thaws at the end of the test at the latest."""
    yield server.freeze
    server.thaw()


def test_a_server_that_does_not_answer_is_given_up(
    server: Postgresql, url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, frozen: Callable[[], None]
) -> None:
    """Where it is there but does nothing, storing and reading fail instead of waiting on; all is stored once it goes on."""
    monkeypatch.setattr(databases, "_WAIT_S", 0.3)
    replica = Replica(url, clock)
    start = clock.now
    serve(replica.traffic, 1, seed=0)
    assert replica.writer.store()
    frozen()
    for minute in range(1, 3):
        clock.now = start + 60 * minute
        serve(replica.traffic, 1, seed=minute)
        assert not replica.writer.store()
    assert not replica.history.read(replica.traffic, start, clock.now + 60).complete
    server.thaw()
    assert replica.writer.store()
    period = replica.history.read(replica.traffic, start, clock.now + 60)
    assert (period.requests, period.complete, replica.traffic.dropped.storage) == (3, True, 0)
    replica.database.close()


def test_a_service_goes_on_while_its_server_does_not_answer(
    server: Postgresql,
    url: str,
    small_repository: SmallRepository,
    monkeypatch: pytest.MonkeyPatch,
    frozen: Callable[[], None],
) -> None:
    """Predictions are answered, the metric shows that nothing is stored, then that it is again; nothing is lost. Where the
    server never goes on, the service ends all the same.
    """
    monkeypatch.setattr(databases, "_WAIT_S", 0.3)
    settings = Settings.model_validate(
        {"model_repository": small_repository.folder, "statistics_sample": 1, "database_url": url, "statistics_flush_s": 0.1}
    )

    def ask(client: httpx.Client) -> None:
        client.post("/v1/models/text/predict", json={"inputs": SENTENCES[0]}).raise_for_status()

    def wait_until_storing(client: httpx.Client, expected: float) -> None:
        while f"normscope_statistics_storing {expected}" not in client.get("/metrics").text:
            pass

    with running_server(settings) as client:
        ask(client)
        wait_until_storing(client, 1.0)
        frozen()
        wait_until_storing(client, 0.0)
        ask(client)
        server.thaw()
        wait_until_storing(client, 1.0)
        answer = client.get("/v1/models/text/statistics").json()
        assert (answer["requests"], answer["complete"]) == (2, True)
        frozen()
        ask(client)


def test_two_services_share_one_database(url: str, small_repository: SmallRepository) -> None:
    """Two running services with one database URL: each answers for the requests that both have served."""
    settings = Settings.model_validate(
        {"model_repository": small_repository.folder, "statistics_sample": 1, "database_url": url, "statistics_flush_s": 0.1}
    )
    with running_server(settings) as one, running_server(settings) as other:
        for client in (one, other, other):
            client.post("/v1/models/text/predict", json={"inputs": SENTENCES[0]}).raise_for_status()
        for client in (one, other):
            while client.get("/v1/models/text/statistics").json()["requests"] < 3:
                pass
            answer = client.get("/v1/models/text/statistics").json()
            assert (answer["requests"], answer["sampled"], answer["complete"]) == (3, 3, True)


def test_an_event_holds_what_all_replicas_served(url: str, small_repository: SmallRepository) -> None:
    """A window goes out once every replica has had the time to store its part: none is sent without it."""
    settings = {"model_repository": small_repository.folder, "database_url": url, "statistics_window_s": 1}
    shared = Settings.model_validate({**settings, "statistics_sample": 1, "statistics_flush_s": 2})
    with running_server(shared) as one, running_server(shared) as other, one.stream("GET", "/v1/models/text/events") as stream:
        other.post("/v1/models/text/predict", json={"inputs": SENTENCES[0]}).raise_for_status()
        data = (json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: "))
        found = list(itertools.islice(data, 4))
        assert sum(each["requests"] for each in found) == 1
