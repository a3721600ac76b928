"""Tensors as JSON and as binary data: what goes in comes out, and nothing else gets through."""

import json
import math
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.api.oip.binary import from_binary, to_binary
from service.api.oip.datatypes import BYTES, NUMPY_TYPES, Tensor, from_json, to_json
from service.errors import InvalidRequestError

_SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@st.composite
def _tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from(sorted(NUMPY_TYPES)))
    values = draw(hnp.arrays(NUMPY_TYPES[datatype], _SHAPES))
    return Tensor("x", datatype, values.shape, values)


def _same(one: Any, other: Any) -> bool:
    return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())


@given(_tensors())
def test_arrays_survive_binary_data(tensor: Tensor) -> None:
    """Every datatype and shape, NaN and infinities bit by bit."""
    data = to_binary(tensor.values)
    assert _same(from_binary("x", tensor.datatype, tensor.shape, memoryview(data)), tensor.values)


@given(_tensors(), st.booleans())
def test_arrays_survive_json(tensor: Tensor, nested: bool) -> None:
    """Every datatype and shape, flat and nested; what is not finite is refused with the remedy."""
    values = np.asarray(tensor.values)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        with pytest.raises(InvalidRequestError, match="binary_data"):
            to_json(tensor)
        return
    data = orjson.loads(orjson.dumps(to_json(tensor), option=orjson.OPT_SERIALIZE_NUMPY))
    if nested and values.size:
        data = values.tolist()
    assert _same(from_json("x", tensor.datatype, tensor.shape, data), values)


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_bytes_survive_binary_data(values: list[bytes]) -> None:
    """Elements of any length and content, none too."""
    assert from_binary("x", BYTES, (len(values),), memoryview(to_binary(values))) == values


@given(st.lists(st.text(max_size=20).filter(str.isprintable), max_size=6))
def test_strings_survive_json(values: list[str]) -> None:
    """Strings come back as they were."""
    tensor = Tensor("x", BYTES, (len(values),), values)
    assert from_json("x", BYTES, tensor.shape, json.loads(json.dumps(to_json(tensor)))) == values


@given(st.sampled_from([*sorted(NUMPY_TYPES), BYTES]), st.lists(st.integers(0, 2**40), min_size=1, max_size=4), st.binary())
def test_binary_data_that_does_not_fit_is_refused(datatype: str, shape: list[int], data: bytes) -> None:
    """Any bytes under any shape, however huge: either they fit exactly, or it is the client's error."""
    with suppress(InvalidRequestError):
        values = from_binary("x", datatype, shape, memoryview(data))
        assert math.prod(shape) == (len(values) if datatype == BYTES else np.asarray(values).size)


_WRONG_DATA: dict[str, tuple[str, list[int], Any]] = {
    "not an array": ("FP32", [1], 1.0),
    "object": ("FP32", [1], {}),
    "too few": ("FP32", [3], [1.0, 2.0]),
    "too many": ("FP32", [1], [1.0, 2.0]),
    "huge shape": ("FP32", [2**62, 2**62], [1.0]),
    "nested otherwise": ("FP32", [2, 2], [[1.0, 2.0, 3.0], [4.0]]),
    "nested too deep": ("FP32", [2], [[1.0], [2.0]]),
    "nested too shallow": ("FP32", [1, 1, 2], [[1.0, 2.0]]),
    "partly nested": ("FP32", [2, 1], [[1.0], 2.0]),
    "string for a number": ("FP32", [1], ["1.0"]),
    "boolean for a number": ("FP32", [2], [True, 1.0]),
    "boolean for an integer": ("INT64", [2], [1, False]),
    "fraction for an integer": ("INT64", [1], [1.5]),
    "whole float for an integer": ("INT64", [1], [1.0]),
    "null": ("FP32", [1], [None]),
    "number for a boolean": ("BOOL", [1], [1]),
    "number for a string": ("BYTES", [1], [1]),
    "integer below its range": ("UINT8", [1], [-1]),
    "integer above its range": ("INT64", [1], [2**63]),
    "number above the range of FP32": ("FP32", [1], [1e39]),
    "integer above the range of FP64": ("FP64", [1], [10**400]),
}


@pytest.mark.parametrize("name", _WRONG_DATA)
def test_wrong_json_data_is_refused(name: str) -> None:
    """Wrong types, shapes and ranges each give an error that names the tensor."""
    with pytest.raises(InvalidRequestError, match="tensor x"):
        from_json("x", *_WRONG_DATA[name])


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01", b"\x05\0\0\0abc", b"\xff\xff\xff\xffabc", b"\x01\0\0\0a" * 2, b"\x01\0\0\0a\x07"],
    ids=["none", "half a length", "truncated", "length that lies", "one more", "rest"],
)
def test_broken_bytes_are_refused(data: bytes) -> None:
    """Lengths of BYTES elements that lie, and more or fewer elements than the shape holds."""
    with pytest.raises(InvalidRequestError, match="tensor x"):
        from_binary("x", BYTES, [1], memoryview(data))


def test_integers_and_infinities_are_numbers() -> None:
    """Floating-point tensors take integers, NaN and infinities."""
    values = np.asarray(from_json("x", "FP32", [4], [1, math.nan, math.inf, -math.inf]))
    np.testing.assert_array_equal(values, np.array([1, math.nan, math.inf, -math.inf], np.float32))
