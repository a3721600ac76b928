"""Large JSON: bytes in, what `orjson.loads` makes of them out, without keeping the interpreter from other threads for long.

orjson holds the interpreter until it is done: 30 ms for a string of 20 MB, 1.8 s for as many bytes of empty arrays. So long strings
are read apart, slice by slice, and what is around them must be small; a body that holds a few inputs always is.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import orjson

from service.errors import InvalidRequestError

LONG_BYTES = 256  # a string of more is read apart; the placeholder in its stead is longer than any other string
SLICE_BYTES = 1 << 16
LONGEST_ESCAPE = 12  # a surrogate pair
_QUOTE = ord('"')
# a slice of a string: its plain bytes and whole escapes, those of a pair together
_SLICE = re.compile(
    rb'[^"\\]*+(?:\\(?:[^u]|u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|(?![dD][89abAB])[0-9a-fA-F]{4}))[^"\\]*+)*+'
)


def read_large_json(body: bytes, max_around: int) -> Any:
    """Reads JSON whose size is mostly that of its strings.

    Args:
        body: UTF-8.
        max_around: most bytes beside long strings.

    Raises:
        orjson.JSONDecodeError: not JSON; its positions mean nothing.
        InvalidRequestError: more than `max_around` bytes beside long strings.
    """
    around, texts, position = bytearray(), list[str](), 0
    while (quote := body.find(b'"', position)) >= 0:
        _check(len(around) + quote - position, max_around)
        around += body[position:quote]
        cuts = string_cuts(body, quote + 1)
        end = cuts[-1]
        if body[end : end + 1] != b'"':  # it has no end, or a broken escape, of which orjson is to tell
            position = end
            around += b'"' + body[end : end + LONGEST_ESCAPE]
            break
        position = end + 1
        if end - quote > LONG_BYTES:
            around += placeholder(len(texts))
            texts.append(read_string(body, cuts))
        else:
            around += body[quote:position]
    else:
        _check(len(around) + len(body) - position, max_around)
        around += body[position:]
    return restore(orjson.loads(around), texts)


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise InvalidRequestError(
            f"the JSON has more than {limit} bytes beside its long strings",
            value=f"at least {size}",
            limit=limit,
            remedy="send each input as one string, and no more inputs than NORMSCOPE_MAX_INPUTS",
        )


def placeholder(index: int) -> bytes:
    """The JSON that stands for a value which is read apart."""
    return f'"{index:0{LONG_BYTES + 1}}"'.encode()


def read_string(body: bytes, cuts: list[int]) -> str:
    """The string between cuts."""
    return "".join(orjson.loads(b'"%b"' % body[start:stop]) for start, stop in pairwise(cuts))


def string_cuts(body: bytes, start: int) -> list[int]:
    """Where the string that starts there can be cut into slices; the last is its closing quote, or where it breaks off."""
    cuts = [start]
    while True:
        limit = min(cuts[-1] + SLICE_BYTES, len(body))
        for _ in range(3):
            if limit < len(body) and body[limit] & 0xC0 == 0x80:  # inside of a character
                limit -= 1
        match = _SLICE.match(body, cuts[-1], limit)
        assert match is not None  # it may be empty
        cuts.append(match.end())
        goes_on = limit - LONGEST_ESCAPE < cuts[-1] and limit < len(body) and body[cuts[-1]] != _QUOTE
        if not goes_on or cuts[-1] == cuts[-2]:
            return cuts


def restore(tree: Any, values: Sequence[Any]) -> Any:
    """The tree with every placeholder replaced by its value; without recursion, for it may be deep."""
    root = [tree]
    nodes: list[Any] = [root] if values else []
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict) and any(len(key) > LONG_BYTES for key in node):
            entries = [(values[int(key)] if len(key) > LONG_BYTES else key, value) for key, value in node.items()]
            node.clear()
            node.update(entries)
        for key, value in [*(node.items() if isinstance(node, dict) else enumerate(node))]:
            if isinstance(value, (dict, list)):
                nodes.append(value)
            elif isinstance(value, str) and len(value) > LONG_BYTES:
                node[key] = values[int(value)]
    return root[0]
