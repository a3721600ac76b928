"""A table in the form that a client asks for by `Accept`: CSV, Arrow or Parquet; the choice between these and JSON."""

import csv
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from starlette.responses import Response

from service.api.traffic import Columns
from service.errors import NotAcceptableError

JSON = "application/json"
CSV = "text/csv"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
_OFFERED = (JSON, CSV, ARROW, PARQUET)


def negotiate(accept: str | None) -> str:
    """The media type of the answer: of those offered the one with the highest weight, JSON before the others.

    Raises:
        NotAcceptableError: none is accepted.
    """
    if not accept:
        return JSON
    weights: dict[str, float] = {}
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weights[media_range] = _weight(parameters)
    best = max(_OFFERED, key=lambda kind: _weight_of(kind, weights))
    if not _weight_of(best, weights):
        raise NotAcceptableError(
            f"none of {accept[:200]!r} is offered", value=accept[:200], limit=list(_OFFERED), remedy=f"accept {JSON} or {CSV}"
        )
    return best


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _weight_of(kind: str, weights: Mapping[str, float]) -> float:
    """The most precise range counts."""
    ranges = (kind, f"{kind.partition('/')[0]}/*", "*/*")
    return next((weights[each] for each in ranges if each in weights), 0.0)


def table_answer(kind: str, columns: Columns) -> Response:
    """The table as `kind`.

    Raises:
        NotAcceptableError: the extra `arrow` is not installed.
    """
    return Response(_WRITERS[kind](columns), media_type=f"{kind}; charset=utf-8" if kind == CSV else kind)


def _csv(columns: Columns) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # RFC 4180
    writer.writerow(columns)
    lists = [_without_nan(column) if isinstance(column, np.ndarray) else column for column in columns.values()]
    writer.writerows(zip(*lists, strict=True))
    return text.getvalue().encode()


def _without_nan(column: Any) -> list[Any]:
    """Empty where undefined."""
    return ["" if number != number else number for number in column.tolist()]  # noqa: PLR0124  # NaN alone differs from itself


def _arrow_table(columns: Columns) -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise NotAcceptableError(
            "Arrow and Parquet need the extra `arrow`, which is not installed",
            limit=[JSON, CSV],
            remedy="pip install normscope[arrow], or accept JSON or CSV",
        ) from None
    arrays = {
        name: pa.array(column, from_pandas=True) if isinstance(column, np.ndarray) else pa.array(column, pa.string())
        for name, column in columns.items()
    }
    for name in ("start", "end"):
        moments = [text.removesuffix("Z") for text in columns[name]]
        arrays[name] = pa.array(np.array(moments, "datetime64[us]"), pa.timestamp("us", "UTC"))
    return pa.table(arrays)


def _arrow(columns: Columns) -> bytes:
    table = _arrow_table(columns)
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _parquet(columns: Columns) -> bytes:
    table = _arrow_table(columns)
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


_WRITERS: dict[str, Callable[[Columns], bytes]] = {CSV: _csv, ARROW: _arrow, PARQUET: _parquet}
