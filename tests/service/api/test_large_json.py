"""Large JSON read in slices is what orjson makes of it, and what it refuses is refused; structure without end is not read."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api import inputs, large_json
from service.api.large_json import read_large_json
from service.errors import InvalidRequestError
from tests.held import held_calls

_PIECES = ["a", "é", "\u2028", "\U0001f600", '"', "\\", "/", "\n", "\x01", "[{,:}]", "plain words " * 30, "7" * 300]
_TEXTS = st.lists(st.sampled_from(_PIECES), max_size=12).map("".join)
_TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=12,
)
_BROKEN = [
    b'"' + b"a" * 300,
    b'"' + b"a" * 300 + b"\\",
    b'"' + b"a" * 300 + b'\\"',
    b'"' + b"a" * 300 + b'\\x"',
    b'"' + b"a" * 300 + b'\\u12"',
    b'"' + b"a" * 300 + b'\\ud83d"',
    b'"' + b"a" * 300 + b'\\ud83d\\u0041"',
    b'"' + b"a" * 300 + b'\\ude00"',
    b'"' + b"a" * 300 + b'\xff"',
    b'"' + b"\x80" * 300 + b'"',
    b'"' + b"a" * 300 + b'\n"',
    b'"' + b"a" * 300 + b'" "' + b"b" * 300 + b'"',
    b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    b"",
    b"nonsense",
]


# slices so short that cuts come near every kind of character and escape
_SIZES = [16, 17, 18, 19, 64, 1 << 16]


def _read(body: bytes, slice_bytes: int) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "SLICE_BYTES", slice_bytes)
        return read_large_json(body, 1 << 20)


@given(tree=_TREES, escapes=st.booleans(), slice_bytes=st.sampled_from(_SIZES))
def test_large_json_is_what_orjson_reads(tree: Any, escapes: bool, slice_bytes: int) -> None:
    """Any tree, with texts of all kinds of characters, escaped or not, as values and as keys."""
    body = json.dumps(tree, ensure_ascii=escapes).encode()
    assert _read(body, slice_bytes) == orjson.loads(body)


@pytest.mark.parametrize("escapes", [False, True])
@pytest.mark.parametrize("slice_bytes", _SIZES)
def test_every_cut_of_a_long_text(slice_bytes: int, escapes: bool) -> None:
    """Pairs of escapes and characters of four bytes lie across every kind of cut."""
    texts = ["a" * shift + '\U0001f600é\u2028"\\' * 40 for shift in range(20)]
    assert _read(json.dumps(texts, ensure_ascii=escapes).encode(), slice_bytes) == texts


@pytest.mark.parametrize("broken", _BROKEN)
def test_what_orjson_refuses_is_refused(broken: bytes) -> None:
    """Strings without end, broken escapes, halves of pairs, bytes that are no UTF-8, control characters, endless depth."""
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(broken)
    for slice_bytes in _SIZES:
        with pytest.raises(orjson.JSONDecodeError):
            _read(broken, slice_bytes)


@pytest.mark.parametrize(
    "body",
    [b"[" * 5000, b"[" + b"[]," * 2000 + b"1]", b"[" + b'"",' * 2000 + b"1]", b'["' + b"a" * 300 + b'"' + b" " * 5000 + b"]"],
)
def test_structure_is_bounded(body: bytes) -> None:
    """What is beside long strings counts: brackets, short strings, spaces. The error names the limit."""
    with pytest.raises(InvalidRequestError, match="NORMSCOPE_MAX_INPUTS") as caught:
        read_large_json(body, 4096)
    assert caught.value.limit == 4096


def _post(client: httpx.Client, body: bytes, route: str = "predict", model: str = "text") -> httpx.Response:
    return client.post(f"/v1/models/{model}/{route}", content=body, headers={"Content-Type": "application/json"})


def test_large_bodies_are_answered_like_small_ones(client: httpx.Client) -> None:
    """Texts of quotes, brackets and commas are no structure, however many; the answer is that of their beginning."""
    texts = [start + ', [{"a": "\\\n"}]' * 20_000 for start in ("what is the weather ", "plain ")]
    large = _post(client, json.dumps({"inputs": texts}).encode())
    small = _post(client, json.dumps({"inputs": [text[:1000] for text in texts]}).encode())
    assert large.status_code == small.status_code == 200
    for one, other in zip(large.json()["predictions"], small.json()["predictions"], strict=True):
        assert one["truncated"]
        assert [entry["label"] for entry in one["labels"]] == [entry["label"] for entry in other["labels"]]
    pattern = ",".join(["embedding_norm"] * 130)
    changes = [{"layer": pattern, "gamma_scale": 1.0, "gamma_shift": 0.0, "beta_scale": 1.0, "beta_shift": 0.0}] * 100
    whatif = _post(client, json.dumps({"inputs": "hello", "changes": changes}).encode(), "whatif")
    assert whatif.status_code == 200, whatif.text


def test_other_requests_are_answered_meanwhile(client: httpx.Client) -> None:
    """Reading a large body holds up nobody."""
    with held_calls(inputs, "read_large_json") as held, ThreadPoolExecutor() as pool:
        large = pool.submit(_post, client, json.dumps({"inputs": "hello " * 20_000}).encode())
        held.began.acquire()
        assert _post(client, b'{"inputs": "hello"}').status_code == 200
        held.release()
        assert large.result().status_code == 200


@pytest.mark.parametrize("model", ["text", "vision"])
@pytest.mark.parametrize("route", ["predict", "whatif"])
def test_wrong_large_bodies_get_a_clear_error(client: httpx.Client, model: str, route: str) -> None:
    """Absurd structure, too many inputs, no string, an unknown field, broken JSON: 422 with the limit, as for small bodies."""
    long = b'"' + b"a" * 100_000 + b'"'
    rest = b', "changes": []' if route == "whatif" else b""
    for body, says in {
        b'{"inputs": [' + b"[]," * 50_000 + b"1]}": "beside its long strings",
        b'{"inputs": [' + b",".join([long] * 33) + b"]" + rest + b"}": "33 inputs",
        b'{"inputs": [' + long + b", 1]" + rest + b"}": "input 1 is not a string",
        b'{"inputs": ' + long + b', "extra": 1' + rest + b"}": "unknown fields: extra",
        b'{"inputs": ' + long + rest + b", " + long + b": 1}": "unknown fields: aaaaaaaaaa",
        b'{"inputs": ' + long: "not JSON",
    }.items():
        answer = _post(client, body, route, model)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
        assert says in answer.json()["error"]["message"]
