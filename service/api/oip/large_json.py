"""Large JSON with tensors: as `service.api.large_json`, but long arrays of numbers are read apart, slice by slice, as well."""

import re
from collections.abc import Callable
from typing import Any

import orjson

from service.api.large_json import LONG_BYTES, LONGEST_ESCAPE, SLICE_BYTES, placeholder, read_string, restore, string_cuts
from service.errors import InvalidRequestError

_MOST_CONTAINERS, _MOST_STRINGS = 100_000, 1_000_000
_LONG_ARRAY_BYTES = 1 << 10
_COLON = re.compile(rb"[ \t\r\n]*+:")


def read_large_tensors(body: bytes, loads: Callable[[bytes], Any] = orjson.loads) -> Any:
    """What `loads` makes of JSON.

    Args:
        body: UTF-8.
        loads: reads a piece of JSON, with bare words that it may allow.

    Raises:
        ValueError: `loads` refuses it; positions mean nothing.
        InvalidRequestError: more than 100,000 arrays and objects, or 1,000,000 strings.
    """
    around, values, position, count, strings = bytearray(), list[Any](), 0, 0, 0
    while True:
        quote = body.find(b'"', position)
        end = len(body) if quote < 0 else quote
        while (close := body.find(b"]", position, end)) >= 0:
            count += 1 + _objects(body, position, close)
            _check(count, _MOST_CONTAINERS, "arrays and objects")
            start = body.rfind(b"[", position, close)
            if start >= 0 and close - start > _LONG_ARRAY_BYTES and not _COLON.match(body, close + 1):  # no name is an array
                around += body[position:start] + placeholder(len(values))
                values.append(_read_array(body, start, close, loads))
            else:
                around += body[position : close + 1]
            position = close + 1
        count += _objects(body, position, end)
        _check(count, _MOST_CONTAINERS, "arrays and objects")
        around += body[position:end]
        if quote < 0:
            return restore(loads(bytes(around)), values)
        strings += 1
        _check(strings, _MOST_STRINGS, "strings")
        cuts = string_cuts(body, quote + 1)
        position = cuts[-1] + 1
        if body[cuts[-1] : position] != b'"':  # it has no end, or a broken escape, of which `loads` is to tell
            loads(b'"' + body[cuts[-1] : cuts[-1] + LONGEST_ESCAPE])
        if cuts[-1] - quote > LONG_BYTES:
            around += placeholder(len(values))
            values.append(read_string(body, cuts))
        else:
            around += body[quote:position]


def _objects(body: bytes, start: int, end: int) -> int:
    return sum(body.count(b"{", at, min(at + SLICE_BYTES, end)) for at in range(start, end, SLICE_BYTES))


def _check(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise InvalidRequestError(
            f"the JSON has more than {limit} {what}",
            value=f"at least {count}",
            limit=limit,
            remedy="send data flat instead of nested, or as binary data",
        )


def _read_array(body: bytes, start: int, close: int, loads: Callable[[bytes], Any]) -> list[Any]:
    """The array between its brackets, which holds neither strings nor arrays."""
    elements: list[Any] = []
    position = start + 1
    while True:
        comma = body.find(b",", position + SLICE_BYTES, close)
        end = close if comma < 0 else comma
        part = loads(b"[%b]" % body[position:end])
        if not part:  # nothing between two commas
            loads(b"[,]")
        elements += part
        if comma < 0:
            return elements
        position = end + 1
