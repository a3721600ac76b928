"""The database of the statistics: a SQLite file, PostgreSQL, or memory. Tables, connections and migrations; knows no statistics.

Times are whole seconds since 1970 in UTC. A row of `windows` or `channels` is one part (`pending.py`) of one window.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    QueuePool,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, IntegrityError

from service.statistics.series import Series

_WAIT_S = 5  # for a lock, a connection or a statement
_MIGRATION_LOCK = 7_203_114  # any number; the same in every replica
_WRITES = "normscope_writes"
_DRIVERS = ("sqlite", "postgres", "postgresql", "postgresql+psycopg")
_REMEDY = "write postgresql://user:password@host/name or sqlite:////folder/file, or unset it"

metadata = MetaData()
version_table = Table("schema_version", metadata, Column("version", Integer, nullable=False))
series_table = Table(
    "series",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("fingerprint", String(64), nullable=False, unique=True),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("sides", Integer, nullable=False),
    Column("adds", Integer, nullable=False),
    Column("layout", Text, nullable=False),  # for people: layer and side of every row
)


def _parts(name: str, metadata: MetaData, *columns: Column[Any]) -> Table:
    return Table(
        name,
        metadata,
        Column("series", Integer, primary_key=True, autoincrement=False),
        Column("start", BigInteger, primary_key=True, autoincrement=False),
        Column("seconds", Integer, primary_key=True, autoincrement=False),
        Column("part", BigInteger, primary_key=True, autoincrement=False),
        Column("requests", BigInteger, nullable=False),
        Column("sampled", BigInteger, nullable=False),
        Column("moments", LargeBinary, nullable=False),
        *columns,  # large ones last: who does not ask for them does not read them
    )


windows_table = _parts(
    "windows", metadata, Column("sketches", LargeBinary, nullable=False), Column("scores", LargeBinary, nullable=True)
)
channels_table = _parts("channels", metadata)


def _create_tables(connection: Connection) -> None:
    first = MetaData()
    series_table.to_metadata(first)
    _parts("windows", first, Column("sketches", LargeBinary, nullable=False))
    _parts("channels", first)
    first.create_all(connection, checkfirst=False)


def _add_scores(connection: Connection) -> None:
    kind = LargeBinary().compile(dialect=connection.dialect)
    connection.execute(text(f"ALTER TABLE windows ADD COLUMN scores {kind}"))


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_create_tables, _add_scores)
"""Migration i leads from version i to i + 1. A released one never changes; later ones alter what it made, by their own SQL."""


class DatabaseUrlError(ValueError):
    """The URL is none of a database that statistics can be stored in; the message never holds the URL, which has a password."""


class NewerDatabaseError(RuntimeError):
    """The database was written by a later release."""


class Database:
    """Connections to one database; usable from several threads."""

    def __init__(self, url: str) -> None:
        """`url` as SQLAlchemy takes it; `sqlite://` is memory.

        Raises:
            DatabaseUrlError: it is no URL of SQLite or PostgreSQL, or the driver is not installed.
        """
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):  # the latter for a port that is no number
            raise DatabaseUrlError(f"NORMSCOPE_DATABASE_URL is no URL; {_REMEDY}") from None
        if parsed.drivername not in _DRIVERS:
            raise DatabaseUrlError(f"NORMSCOPE_DATABASE_URL begins with {parsed.drivername!r}; {_REMEDY}")
        self._files: list[tuple[int, int] | None] = [None, None]  # which ones were migrated: the database and its log
        self.in_memory = parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:")
        self._engine = _sqlite(url, in_memory=self.in_memory) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)

    @property
    def shared(self) -> bool:
        """Whether other processes may store what this one reads."""
        return self._engine.dialect.name != "sqlite"

    @classmethod
    def file(cls, path: Path) -> "Database":
        """A SQLite file, made when it is first written."""
        return cls(f"sqlite:///{path}")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection whose statements all see one state.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database is not there.
        """
        level = {"isolation_level": "REPEATABLE READ"} if self._engine.dialect.name == "postgresql" else {}
        with self._engine.connect().execution_options(**level) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction that is committed at the end, and rolled back by an exception.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database is full, locked or not there.
        """
        with self._engine.connect().execution_options(**{_WRITES: True}) as connection, connection.begin():
            yield connection

    def migrate(self) -> None:
        """Brings the tables to the newest version; several replicas may do so at once.

        Raises:
            NewerDatabaseError: they are of a later release.
            sqlalchemy.exc.SQLAlchemyError: the database cannot be written.
        """
        with self.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            if not inspect(connection).has_table(version_table.name):
                version_table.create(connection)
                connection.execute(version_table.insert().values(version=0))
            version = connection.execute(select(version_table.c.version)).scalar_one()
            if version > len(MIGRATIONS):
                raise NewerDatabaseError(
                    f"the database has version {version}, this release knows {len(MIGRATIONS)}; use a later release"
                )
            for migrate in MIGRATIONS[version:]:
                migrate(connection)
            if version < len(MIGRATIONS):
                connection.execute(version_table.update().values(version=len(MIGRATIONS)))
        if self._engine.dialect.name == "sqlite" and not self.in_memory:
            self._files = [self._identity(""), self._identity("-wal")]

    @property
    def replaced(self) -> bool:
        """Whether the SQLite file that was migrated is not there any more, or is another: what is written then is lost."""
        return self._files[0] is not None and self._files[0] != self._identity("")

    def _identity(self, ending: str) -> tuple[int, int] | None:
        """Device and inode of the file or of one beside it; None where there is none. Open files keep theirs to themselves."""
        try:
            found = os.stat(f"{self._engine.url.database}{ending}")
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def series_id(self, connection: Connection, series: Series) -> int | None:
        """The number of a series; None if nothing of it was stored."""
        found = connection.execute(select(series_table.c.id).where(series_table.c.fingerprint == series.fingerprint))
        return found.scalar_one_or_none()

    def add_series(self, series: Series) -> int:
        """The number of a series, which is made known unless it is.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database cannot be written.
        """
        try:
            return self._add_series(series)
        except IntegrityError:  # another replica has just done so
            return self._add_series(series)

    def _add_series(self, series: Series) -> int:
        with self.writing() as connection:
            known = self.series_id(connection, series)
            if known is not None:
                return known
            layout = json.dumps([[layer.layer, side] for layer, side in series.layout.rows])
            added = connection.execute(
                series_table.insert().values(
                    fingerprint=series.fingerprint,
                    model=series.model,
                    version=series.version,
                    sides=series.sides,
                    adds=series.adds,
                    layout=layout,
                )
            )
            assert added.inserted_primary_key is not None  # an insert of one row
            return int(added.inserted_primary_key[0])

    def forget_connections(self) -> None:
        """Opens new ones from now on: the file or the server may have been replaced."""
        if self.replaced and self._files[1] == self._identity("-wal"):
            for ending in ("-wal", "-shm"):  # left by the old file, they would be read into the new one
                Path(f"{self._engine.url.database}{ending}").unlink(missing_ok=True)
        self._files = [None, None]
        if not self.in_memory:
            self._engine.dispose()

    def close(self) -> None:
        """Ends all connections; what is in memory is gone."""
        self._engine.dispose()


def _postgresql(url: URL) -> Engine:
    try:
        from service.statistics.postgresql import postgresql_engine  # noqa: PLC0415  # the driver is an extra
    except ImportError as error:
        raise DatabaseUrlError(
            "NORMSCOPE_DATABASE_URL names PostgreSQL, whose driver is missing or broken "
            f"({error}); pip install 'normscope[postgres]', or unset it"
        ) from error
    return postgresql_engine(url.set(drivername="postgresql+psycopg"), _WAIT_S)


def _sqlite(url: str, *, in_memory: bool) -> Engine:
    arguments = {"check_same_thread": False, "timeout": _WAIT_S}
    if in_memory:  # one connection that is never closed holds all; threads take turns
        engine = create_engine(
            url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=4 * _WAIT_S, connect_args=arguments
        )
    else:
        engine = create_engine(url, pool_size=4, max_overflow=4, pool_timeout=_WAIT_S, connect_args=arguments)

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None  # the driver would begin transactions by rules of its own
        connection.execute("PRAGMA journal_mode=WAL")  # readers never wait for the writer
        connection.execute("PRAGMA synchronous=NORMAL")  # a lost power supply may cost the last transactions, never the file

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # a transaction that reads first and writes later could not wait for a lock
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
