"""Parts of windows in the database: written, read, merged into coarser windows, deleted."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, LargeBinary, Table, and_, cast, delete, func, null, select

from models.statistics.request_values import value_count
from service.statistics.channels import ChannelMoments
from service.statistics.database import Database, channels_table, series_table, windows_table
from service.statistics.pending import StoredPart, new_part
from service.statistics.retention import DAY_S, HOUR_S, Retention
from service.statistics.stored_sketches import merge_stored
from service.statistics.window import WindowMoments

_NAMES = 500  # in one statement
_Merged = TypeVar("_Merged")
_log = logging.getLogger("normscope")


def write_parts(connection: Connection, series: int, windows: Sequence[StoredPart], channels: Sequence[StoredPart]) -> None:
    """Stores parts; what was stored of them before is replaced."""
    for table, parts in ((windows_table, windows), (channels_table, channels)):
        for part in parts:
            connection.execute(delete(table).where(_is(table, series, part)))
            connection.execute(table.insert().values(_row(table, series, part)))


def read_windows(
    connection: Connection, series: int, since: float, until: float, *, sketches: bool, scores: bool = False
) -> list[StoredPart]:
    """The parts of all windows that reach into [since, until], the oldest first."""
    return _read(connection, windows_table, _reaching(windows_table, series, since, until), sketches=sketches, scores=scores)


def read_channels(connection: Connection, series: int, since: float, until: float) -> list[StoredPart]:
    """The same of the channels; hours and days."""
    return _read(connection, channels_table, _reaching(channels_table, series, since, until), sketches=False)


def read_sketches(connection: Connection, series: int, parts: Sequence[StoredPart]) -> dict[int, bytes]:
    """The sketches of these windows, by the names of the parts."""
    c = windows_table.c
    found: dict[int, bytes] = {}
    for i in range(0, len(parts), _NAMES):
        chunk = parts[i : i + _NAMES]
        named = and_(c.series == series, c.start >= chunk[0].start, c.start <= chunk[-1].start, c.part.in_([p.part for p in chunk]))
        query = select(c.part, cast(c.sketches, LargeBinary)).where(named)
        found |= {part: bytes(sketches) for part, sketches in connection.execute(query)}
    return found


def _reaching(table: Table, series: int, since: float, until: float) -> ColumnElement[bool]:
    c = table.c
    # the first bound follows from the last, but only it leads to an index
    return and_(c.series == series, c.start > since - DAY_S, c.start < until, c.start + c.seconds > since)


def roll_up(database: Database, retention: Retention, now: float, stopping: Callable[[], bool] = lambda: False) -> None:
    """Merges old windows into hours, old hours into days, and deletes old days, one window in each transaction.

    Ends between two transactions once it is `stopping`; the rest is left to the next time.

    Several replicas may do so at once: each part is merged by one of them. A part that cannot be read is deleted, with a warning.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database is full, locked or not there; what is done is done, the rest is as it was.
    """
    with database.reading() as connection:
        known = connection.execute(select(series_table.c.id, series_table.c.sides, series_table.c.adds)).all()
    for series, sides, adds in known:
        for table in (windows_table, channels_table):
            for coarse_s, kept_s in ((HOUR_S, retention.windows_s), (DAY_S, retention.hours_s)):
                before = int(now - kept_s) // coarse_s * coarse_s
                while not stopping() and _merge_oldest(database, table, series, coarse_s, before, sides, adds):
                    pass
            if stopping():
                return
            with database.writing() as connection:
                old = and_(table.c.series == series, table.c.start + table.c.seconds <= now - retention.days_s)
                connection.execute(delete(table).where(old))


def keep_newest(database: Database, max_bytes: int) -> None:
    """Deletes the oldest windows of all series, until what is left takes `max_bytes` at most.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database is full, locked or not there.
    """
    w, c = windows_table.c, channels_table.c
    of_channels = func.length(c.moments)
    of_windows = func.length(w.moments) + func.length(w.sketches) + func.coalesce(func.length(w.scores), 0)
    with database.writing() as connection:
        sizes = [*connection.execute(select(w.start, of_windows)), *connection.execute(select(c.start, of_channels))]
        total = 0
        for start, size in sorted((row[0], row[1]) for row in sizes)[::-1]:
            total += size
            if total > max_bytes:
                for table in (windows_table, channels_table):
                    connection.execute(delete(table).where(table.c.start <= start))
                return


def _merge_oldest(database: Database, table: Table, series: int, coarse_s: int, before: int, sides: int, adds: int) -> bool:
    """Merges the windows of the oldest coarse window that ends until `before`; whether there was one."""
    c = table.c
    finer = and_(c.series == series, c.seconds < coarse_s, c.start < before)
    with database.writing() as connection:
        oldest = connection.execute(select(func.min(c.start)).where(finer)).scalar_one()
        if oldest is None:
            return False
        start = int(oldest) // coarse_s * coarse_s
        inside = and_(finer, c.start < start + coarse_s)
        parts = _read(connection, table, inside, sketches=table is windows_table, lock=True)
        if not parts:  # another replica has just merged them
            return True
        for part in parts:
            connection.execute(delete(table).where(_is(table, series, part)))

        def merge(parts: Sequence[StoredPart]) -> dict[str, bytes]:
            return _merged_windows(parts, sides, adds) if table is windows_table else _merged_channels(parts)

        found = len(parts)
        parts, merged = readable_parts(parts, merge)
        if len(parts) < found:
            _log.warning(
                "%d of %d parts in table %s, series %d, from %d on, cannot be read and are deleted",
                found - len(parts),
                found,
                table.name,
                series,
                start,
            )
        if merged is None:
            return True
        connection.execute(
            table.insert().values(
                series=series,
                start=start,
                seconds=coarse_s,
                part=new_part(),
                requests=sum(part.requests for part in parts),
                sampled=sum(part.sampled for part in parts),
                **merged,
            )
        )
        return True


def readable_parts(
    parts: Sequence[StoredPart], merge: Callable[[Sequence[StoredPart]], _Merged]
) -> tuple[list[StoredPart], _Merged | None]:
    """Those that can be read, and merged with the first that can; and what they are together, None if there are none."""
    try:
        return list(parts), merge(parts) if parts else None
    except Exception:  # which one depends on where a part is broken
        pass
    readable: list[StoredPart] = []
    for part in parts:
        try:
            merge([*readable[:1], part])
        except Exception:
            continue
        readable.append(part)
    return readable, merge(readable) if readable else None


def merged_channels(parts: Sequence[StoredPart]) -> ChannelMoments:
    """The channels of all parts together; at least one."""
    return ChannelMoments.merged([ChannelMoments.from_bytes(part.moments) for part in parts])


def _merged_windows(parts: Sequence[StoredPart], sides: int, adds: int) -> dict[str, bytes]:
    if not all(WindowMoments.are_in(part.moments, sides, adds) for part in parts):
        raise ValueError("broken moments")
    moments = WindowMoments.from_bytes([part.moments for part in parts], sides, adds).pooled()
    sketches = merge_stored([part.sketches or b"" for part in parts], value_count(sides, adds))  # asked for above
    return {"moments": moments.to_bytes(), "sketches": sketches}


def _merged_channels(parts: Sequence[StoredPart]) -> dict[str, bytes]:
    return {"moments": merged_channels(parts).to_bytes()}


def _read(
    connection: Connection,
    table: Table,
    chosen: ColumnElement[bool],
    *,
    sketches: bool,
    scores: bool = False,
    lock: bool = False,
) -> list[StoredPart]:
    c = table.c
    # SQLite lets anything stand in a column, such as text that was put there by hand
    moments, *large = (
        cast(c[name], LargeBinary) if asked else null()
        for name, asked in (("moments", True), ("sketches", sketches), ("scores", scores))
    )
    columns: list[Any] = [c.start, c.seconds, c.part, c.requests, c.sampled, moments, *large]
    query = select(*columns).where(chosen).order_by(c.start, c.part)
    rows = connection.execute(query.with_for_update() if lock else query)
    return [
        StoredPart(start, seconds, part, requests, sampled, bytes(moments), _bytes(sketched), _bytes(scored))
        for start, seconds, part, requests, sampled, moments, sketched, scored in rows
    ]


def _bytes(blob: bytes | None) -> bytes | None:
    """Drivers give other types for what is bytes."""
    return None if blob is None else bytes(blob)


def _is(table: Table, series: int, part: StoredPart) -> ColumnElement[bool]:
    c = table.c
    return and_(c.series == series, c.start == part.start, c.seconds == part.seconds, c.part == part.part)


def _row(table: Table, series: int, part: StoredPart) -> dict[str, Any]:
    row = {
        "series": series,
        "start": part.start,
        "seconds": part.seconds,
        "part": part.part,
        "requests": part.requests,
        "sampled": part.sampled,
        "moments": part.moments,
    }
    return row | {"sketches": part.sketches, "scores": part.scores} if table is windows_table else row
