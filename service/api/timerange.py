"""Moments and stretches of time as requests name them: text in, seconds since 1970 out."""

from datetime import UTC, datetime

from service.errors import InvalidRequestError
from service.statistics.retention import DAY_S, parse_duration

MOMENT_HELP = "`now`, a time before it such as `-90s`, `-15m`, `-2h`, `-7d`, or an ISO 8601 time; UTC where it names no zone"
_REMEDY = "write now, -2h, or a time such as 2026-05-04T10:00:00Z"
_MAX_LENGTH = 64
_LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_LONGEST_STEP_S = 366 * DAY_S


def parse_moment(text: str, now: float, name: str) -> float:
    """Seconds since 1970 of a moment; `name` is that of the parameter.

    Raises:
        InvalidRequestError: it is none of what `MOMENT_HELP` says.
    """
    try:
        if text == "now":
            return now
        if text.startswith("-"):
            seconds = now - parse_duration(text[1:])
        else:
            # a plus that was not escaped arrives as a space
            moment = datetime.fromisoformat(text[:_MAX_LENGTH].replace(" ", "+") if "T" in text else text[:_MAX_LENGTH])
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if not 0 <= seconds <= _LAST:
            raise ValueError(f"{text} is before 1970 or after 9999")
        return seconds
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            f"{name}: {text[:_MAX_LENGTH]!r} is no time", value=text[:_MAX_LENGTH], limit=MOMENT_HELP, remedy=_REMEDY
        ) from None


def parse_range(since: str, until: str, now: float, name: str = "since") -> tuple[float, float]:
    """Both ends of a stretch of time.

    Raises:
        InvalidRequestError: an end is no time, or the first is not before the second.
    """
    begin, end = parse_moment(since, now, name), parse_moment(until, now, "until" if name == "since" else name)
    if begin >= end:
        raise InvalidRequestError(
            f"{name}: {since} is not before {until}",
            value=f"{since}..{until}",
            limit="since < until",
            remedy="choose an earlier begin or a later end",
        )
    return begin, end


def parse_step(text: str, window_s: int, name: str = "step") -> int:
    """Seconds of a step, a multiple of a window.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        seconds = parse_duration(text)
        if seconds % window_s:
            raise ValueError(f"{text} is no multiple of a window of {window_s} s")
        if seconds > _LONGEST_STEP_S:
            raise ValueError(f"{text} is longer than a year")
    except ValueError as error:
        raise InvalidRequestError(
            f"{name}: {error}",
            value=text,
            limit=f"multiples of {window_s} s, up to a year",
            remedy="write a duration such as 5m, 1h or 1d",
        ) from None
    return seconds


def iso(seconds: float) -> str:
    """ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
