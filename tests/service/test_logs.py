import json
import logging
import re
import signal
from collections.abc import Iterator

import httpx
import pytest

from service.logs import FIELDS, ConsoleFormatter, JsonFormatter, request_id
from tests.conftest import SmallRepository
from tests.service.test_server import process, read_until


@pytest.fixture
def in_request() -> Iterator[None]:
    """Within a request of the id `r-1`."""
    token = request_id.set("r-1")
    yield
    request_id.reset(token)


def record(
    message: str, *arguments: object, error: BaseException | None = None, fields: dict[str, object] | None = None
) -> logging.LogRecord:
    """A record as a logger makes it, of a known time."""
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("normscope", logging.WARNING, "file.py", 1, message, arguments, exc_info)
    made.created = 1700000000.25
    if fields:
        setattr(made, FIELDS, fields)
    return made


@pytest.mark.usefixtures("in_request")
def test_json_has_every_part() -> None:
    """Time in UTC, level, logger, message, id of the request and the fields of the record."""
    line = JsonFormatter().format(record("%d models", 2, fields={"status": 404, "ms": 1.5}))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "normscope",
        "message": "2 models",
        "request_id": "r-1",
        "status": 404,
        "ms": 1.5,
    }


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", 'quo"te', "half a pair \ud800", "\u2028"])
def test_whatever_is_logged_json_stays_one_line(text: str) -> None:
    """Line breaks, control characters and text that is not Unicode do not break the format."""
    line = JsonFormatter().format(record("got %s", text, fields={"path": text}))
    assert "\n" not in line
    assert "got " in json.loads(line)["message"]


def test_json_holds_a_traceback() -> None:
    """An exception is one member, in the same line."""
    try:
        raise ValueError("inner")
    except ValueError as error:
        line = JsonFormatter().format(record("failed", error=error))
    assert "\n" not in line
    assert "ValueError: inner" in json.loads(line)["exception"]


@pytest.mark.usefixtures("in_request")
def test_the_console_shows_the_same_for_people() -> None:
    """Time, level, logger, id of the request and message; a traceback stands below."""
    assert ConsoleFormatter().format(record("%d models", 2)) == "2023-11-14T22:13:20.250Z WARNING normscope [r-1] 2 models"
    assert ConsoleFormatter().format(record("failed", error=ValueError("inner"))).splitlines()[-1] == "ValueError: inner"


def test_a_client_cannot_forge_a_line() -> None:
    """Control characters of what a client sent are escaped on the console."""
    line = ConsoleFormatter().format(record("no path %s", "/a\n2024 ERROR forged\x1b[2J"))
    assert line.endswith(r"no path /a\n2024 ERROR forged\x1b[2J")


def test_every_line_of_the_process_is_json(small_repository: SmallRepository) -> None:
    """With log_format=json each line from start to end is an object, those of uvicorn too; those of a request carry its id."""
    arguments = ("--port", "0", "--log-format", "json", "--log-level", "debug")
    with process(*arguments, NORMSCOPE_MODEL_REPOSITORY=str(small_repository.folder)) as started:
        found = read_until(started, r".*running on (http://[\d.]+:\d+).*")
        httpx.get(f"{found[1]}/nowhere", headers={"X-Request-ID": "r-2"})
        started.send_signal(signal.SIGTERM)
        output, _ = started.communicate(timeout=60)
    lines = [json.loads(line) for line in [found[0], *output.splitlines()]]
    assert lines[0]["logger"] == "uvicorn.error"
    of_request = [line for line in lines if line.get("request_id") == "r-2"]
    assert [(line["logger"], line["level"], line["route"], line["status"]) for line in of_request] == [
        ("normscope.access", "info", "(none)", 404)
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
