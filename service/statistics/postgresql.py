"""Connections to PostgreSQL on which nobody waits for long. Imports the driver, which is an extra.

A server that is slow ends a statement itself, and the kernel breaks a connection whose other end has gone. Neither helps against a
server or a proxy that is there but does nothing: so every answer is also waited for here no longer than twice that time.
"""

import time
from collections.abc import Generator
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from sqlalchemy import URL, Engine, create_engine, event


class _BoundedConnection(psycopg.Connection[Any]):
    """Is closed, with an error, where an answer does not come in time."""

    patience_s = 10.0

    def wait(self, gen: PQGen[RV], *arguments: Any, **options: Any) -> RV:
        return super().wait(self._bounded(gen), *arguments, **options)

    def _bounded(self, steps: PQGen[RV]) -> Generator[Any, Any, RV]:
        """The same steps; the driver asks for the next one when there is news, and ten times a second when there is none."""
        end = time.monotonic() + self.patience_s
        try:
            waits_for = next(steps)
            while True:
                news = yield waits_for
                if not news and time.monotonic() > end:
                    self.close()
                    raise psycopg.OperationalError(f"the server has not answered for {self.patience_s:g} s")
                waits_for = steps.send(news)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


def postgresql_engine(url: URL, wait_s: float) -> Engine:
    """Connects when it is first used, and anew after a broken connection. Waits `wait_s` for a connection or a statement."""
    engine = create_engine(
        url,
        pool_size=4,
        max_overflow=4,
        pool_timeout=wait_s,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": max(1, round(wait_s)),
            "options": f"-c statement_timeout={round(wait_s * 1000)}",
            "tcp_user_timeout": round(wait_s * 1000),
            "keepalives": 1,
            "keepalives_idle": max(1, round(wait_s)),
            "keepalives_interval": 1,
            "keepalives_count": 3,
        },
    )

    @event.listens_for(engine, "do_connect")
    def _connect(dialect: object, record: object, arguments: Any, parameters: Any) -> _BoundedConnection:
        connection = _BoundedConnection.connect(*arguments, **parameters)
        connection.patience_s = 2 * wait_s
        return connection

    return engine
