"""Bodies without a server: decompression within the limit, JSON as clients write it, the choice of an encoding."""

import gzip
import json
import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.oip.body import choose_encoding, decompress, parse_json
from service.errors import BodyTooLargeError, InvalidRequestError


@given(st.binary(max_size=2000))
def test_decompression_undoes_both_encodings(data: bytes) -> None:
    """gzip is the gzip format, deflate the zlib format, as in HTTP; exactly the limit still passes."""
    assert decompress(gzip.compress(data), "gzip", max(len(data), 1)) == data
    assert decompress(zlib.compress(data), "deflate", max(len(data), 1)) == data


def test_a_bomb_stops_at_the_limit() -> None:
    """A small body that would become large is refused; the message names the setting."""
    with pytest.raises(BodyTooLargeError, match="NORMSCOPE_MAX_BODY_BYTES"):
        decompress(gzip.compress(b"\0" * 50_000_000), "gzip", 1000)


@pytest.mark.parametrize(
    "data", [b"", b"plain", gzip.compress(b"abc")[:-3], gzip.compress(b"abc") + b"rest", zlib.compress(b"abc")]
)
def test_broken_compression_is_refused(data: bytes) -> None:
    """Nothing, no gzip, truncated, with something after the end, the other encoding."""
    with pytest.raises(InvalidRequestError, match="gzip"):
        decompress(data, "gzip", 1000)


def test_bare_words_for_nonfinite_numbers() -> None:
    """NaN, Infinity and -Infinity may stand in JSON, as Python's own encoder writes them."""
    values = parse_json(json.dumps({"data": [math.nan, math.inf, -math.inf, 1.5]}).encode())["data"]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf, 1.5]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"NaN"',
        b"NaN",
        b'{"a": NaN',
        b'{"a": "\xff", "b": NaN}',
        b'{"a": "\\ud800", "b": NaN}',
        b'{"a": ' + b"[" * 100_000 + b"NaN" + b"]" * 100_000 + b"}",
        b'{"a": ' + b"9" * 5000 + b', "b": NaN}',
        '{"a": NaN}'.encode("utf-16"),
    ],
)
def test_what_is_no_json_object_is_refused(content: bytes) -> None:
    """Broken JSON, other values, bad UTF-8, lone surrogates, deep nesting and endless numbers, with bare words as without."""
    with pytest.raises(InvalidRequestError):
        parse_json(content)


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", None),
        ("identity", None),
        ("br", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZIP, deflate, br, zstd", "gzip"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0", None),
        ("gzip;q=nonsense", None),
    ],
)
def test_the_encoding_that_the_client_prefers(accepted: str, chosen: str | None) -> None:
    """As the weights say; none where neither is welcome."""
    assert choose_encoding(accepted) == chosen
