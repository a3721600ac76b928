"""How the service logs: records of the standard library in, one line each out, for people or as JSON, on standard error.

Every line of a request carries its id, which `request_id` holds while the request is worked on. A field given by `extra=FIELDS`
of a record is a member of its JSON object; the console shows the message alone. The loggers:

- `normscope`: models, starts, stops and faults;
- `normscope.access`: one line a request, with method, route, model, status and milliseconds. At `error` for a status from 500 on,
  at `info` for 4xx, at `debug` for the rest. Refusals under load (429 and 503) and timeouts (504) are at `debug` too: a flood of
  requests must not become a flood of lines, and the metrics count them all;
- `uvicorn.error`: the HTTP server. Its own access log is off.
"""

import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

FIELDS = "normscope_fields"  # the attribute of a record that holds its fields
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

request_id: ContextVar[str] = ContextVar("request_id", default="")


def configure_logging(level: str, style: Literal["console", "json"]) -> None:
    """Sends all records of the process from `level` on to standard error, also those of libraries and Python's warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # else it warns of every broken body, without its id


class ConsoleFormatter(logging.Formatter):
    """`2025-01-31T12:00:00.123Z INFO normscope [request id] message`, a traceback below it.

    Control characters in a message are escaped: what a client sent cannot forge a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        identity = request_id.get()
        shown = f"[{identity}] " if identity else ""
        message = _CONTROL.sub(lambda found: repr(found[0])[1:-1], record.getMessage())
        line = f"{_time(record)} {record.levelname} {record.name} {shown}{message}"
        traceback = _traceback(self, record)
        return f"{line}\n{traceback}" if traceback else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, then request_id, the fields and exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identity := request_id.get():
            line["request_id"] = identity
        line |= getattr(record, FIELDS, {})
        if traceback := _traceback(self, record):
            line["exception"] = traceback
        try:
            return orjson.dumps(line, default=str).decode()
        except orjson.JSONEncodeError:  # half of a surrogate pair, which JSON cannot hold
            return orjson.dumps({name: ascii(value) for name, value in line.items()}).decode()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)
