"""Large JSON with tensors, read in slices, is what the reader of small JSON makes of it; structure without end is not read."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api import large_json
from service.api.oip import body
from service.api.oip import large_json as large_tensors
from service.api.oip.body import parse_json
from service.errors import InvalidRequestError

_NUMBERS = st.lists(st.integers(-9, 2**40) | st.floats(allow_nan=False, allow_infinity=False), max_size=40)
_TREES = st.recursive(
    _NUMBERS | st.none() | st.sampled_from(["", "text", "[1, 2]" * 60, '"' * 300]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "data", "k" * 300]), inner, max_size=3),
    max_leaves=10,
)
_MARKS = ["[", "]", "{", "}", ",", ",,", '"', ":", " ", "1", "-", "NaN", "\\"]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short JSON is cut in many places."""
    monkeypatch.setattr(large_tensors, "_LONG_ARRAY_BYTES", 8)
    monkeypatch.setattr(large_tensors, "SLICE_BYTES", 16)
    monkeypatch.setattr(large_json, "SLICE_BYTES", 16)


def _read(large: bool, content: bytes) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "_ASIDE_BYTES", 0 if large else 1 << 30)
        try:
            return parse_json(content)
        except InvalidRequestError:
            return InvalidRequestError


@given(tree=_TREES, spaces=st.booleans())
def test_any_tree(tree: Any, spaces: bool) -> None:
    """Flat and nested numbers, texts that look like numbers, long names."""
    content = json.dumps({"inputs": tree}, indent=1 if spaces else None).encode()
    assert _read(True, content) == _read(False, content) == {"inputs": tree}


@given(tree=_TREES, places=st.lists(st.tuples(st.floats(0, 1), st.sampled_from(_MARKS), st.integers(0, 2)), min_size=1, max_size=3))
def test_any_damage(tree: Any, places: list[tuple[float, str, int]]) -> None:
    """What is broken is refused alike, above all commas at a cut; what is still JSON is read alike."""
    text = json.dumps({"inputs": tree})
    for place, mark, dropped in places:
        at = int(place * len(text))
        text = text[:at] + mark + text[at + dropped :]
    one, other = _read(True, text.encode()), _read(False, text.encode())
    assert repr(one) == repr(other)  # NaN is not equal to itself


@pytest.mark.parametrize("commas", [",", ", ", " ,\n"])
def test_a_comma_too_many(commas: str) -> None:
    """At every place of a long array, which is cut at commas."""
    for at in range(41):
        numbers = [str(i) for i in range(40)]
        numbers.insert(at, "")
        assert _read(True, f'{{"inputs": [{commas.join(numbers)}]}}'.encode()) is InvalidRequestError


@pytest.mark.parametrize("after", [":", " \n: ", ""])
def test_an_array_is_no_name(after: str) -> None:
    """Where the name of a field should be, an array is refused however long it is."""
    numbers = json.dumps(list(range(40)))
    assert _read(True, f'{{"inputs": 1, {numbers}{after} 2}}'.encode()) is InvalidRequestError


def test_strings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In JSON; the remedy is binary data."""
    monkeypatch.setattr(large_tensors, "_MOST_STRINGS", 50)
    monkeypatch.setattr(body, "_ASIDE_BYTES", 0)
    assert parse_json(json.dumps({"data": ["a"] * 49}).encode()) == {"data": ["a"] * 49}
    with pytest.raises(InvalidRequestError, match="more than 50 strings; send data flat instead of nested, or as binary data"):
        parse_json(json.dumps({"data": ["a"] * 50}).encode())


def test_bare_words_in_a_long_array() -> None:
    """NaN and infinities in any slice."""
    values = [float(i) for i in range(60)]
    values[3], values[30], values[59] = math.nan, math.inf, -math.inf
    assert repr(_read(True, json.dumps({"data": values}).encode())) == repr({"data": values})


@pytest.mark.parametrize("piece", ["[]", "{}", "[[]]", '{"a": []}', '["a"]'])
def test_structure_is_bounded(piece: str) -> None:
    """More arrays and objects than tensors need are refused with the number and the remedy; brackets in strings do not count."""
    many = b'{"inputs": [' + b",".join([piece.encode()] * 100_001) + b"]}"
    with pytest.raises(InvalidRequestError, match="more than 100000 arrays and objects; send data flat"):
        parse_json(many)
    text = json.dumps({"inputs": piece * 100_001}).encode()
    assert parse_json(text) == {"inputs": piece * 100_001}
