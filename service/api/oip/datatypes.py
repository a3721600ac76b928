"""Tensors of the protocol as JSON lists: data, flat or nested, to values and back, for every datatype. Knows no model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from service.errors import InvalidRequestError

BYTES = "BYTES"
NUMPY_TYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "?",
        "UINT8": "<u1",
        "UINT16": "<u2",
        "UINT32": "<u4",
        "UINT64": "<u8",
        "INT8": "<i1",
        "INT16": "<i2",
        "INT32": "<i4",
        "INT64": "<i8",
        "FP16": "<f2",
        "FP32": "<f4",
        "FP64": "<f8",
    }.items()
}
"""The datatypes beside BYTES, as they lie in binary data: little-endian."""

_SLICE = 1 << 14  # elements
T = TypeVar("T")

Values = NDArray[Any] | Sequence[bytes | str]
"""An array of the tensor's shape; of BYTES the elements in row-major order: bytes as they came in binary data, strings in JSON."""

_JSON_NAMES: Mapping[type, str] = {
    bool: "booleans",
    int: "integers",
    float: "numbers with a fraction",
    str: "strings",
    list: "arrays",
    dict: "objects",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor with its values."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Values


def from_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> Values:
    """The `data` of a tensor, flat or nested as its shape, to its values.

    Raises:
        InvalidRequestError: not an array, not of this shape, elements of another type, or out of the datatype's range.
    """
    flat = _flatten(name, shape, data)
    allowed, wanted = _json_types(datatype)
    for part in in_slices(flat):
        if strangers := set(map(type, part)) - allowed:
            found = ", ".join(_JSON_NAMES[kind] for kind in strangers)
            raise InvalidRequestError(
                f"tensor {name}: {datatype} takes {wanted}, not {found}", value=found, limit=wanted, remedy=f"send {wanted} in data"
            )
    if datatype == BYTES:
        return flat
    return _to_array(name, datatype, flat).reshape(shape)


def in_slices(elements: Sequence[T]) -> Iterator[Sequence[T]]:
    """The elements in slices, each of which keeps the interpreter from the event loop for a moment only."""
    if len(elements) <= _SLICE:
        yield elements
        return
    for start in range(0, len(elements), _SLICE):
        yield elements[start : start + _SLICE]


def _json_types(datatype: str) -> tuple[set[type], str]:
    if datatype == BYTES:
        return {str}, "strings"
    kind = NUMPY_TYPES[datatype].kind
    if kind == "b":
        return {bool}, "true and false"
    return ({int}, "integers") if kind in "iu" else ({int, float}, "numbers")


def _flatten(name: str, shape: Sequence[int], data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidRequestError(
            f"tensor {name}: data is not an array", value=type(data).__name__, limit="array", remedy="send data as an array"
        )
    nested = len(shape) > 1 and len(data) > 0 and isinstance(data[0], list)
    flat = _unnest(data, shape) if nested else data
    if flat is None:
        raise InvalidRequestError(
            f"tensor {name}: data is not nested as shape {list(shape)}",
            value="nested arrays",
            limit=list(shape),
            remedy="nest data as the shape says, or send it flat",
        )
    if len(flat) != math.prod(shape):
        raise InvalidRequestError(
            f"tensor {name}: data has {len(flat)} elements, shape {list(shape)} has {math.prod(shape)}",
            value=len(flat),
            limit=math.prod(shape),
            remedy="send as many elements as the shape holds",
        )
    return flat


def _unnest(data: list[Any], shape: Sequence[int]) -> list[Any] | None:
    """The innermost elements of arrays that are nested exactly as `shape`, else None."""
    if len(data) != shape[0]:
        return None
    for extent in shape[1:]:
        inner: list[Any] = []
        for part in in_slices(data):
            if not set(map(type, part)) <= {list} or not set(map(len, part)) <= {extent}:
                return None
            inner.extend(chain.from_iterable(part))
        data = inner
    return data


def _to_array(name: str, datatype: str, flat: list[Any]) -> NDArray[Any]:
    dtype = NUMPY_TYPES[datatype]
    wide = np.empty(len(flat), np.float64 if dtype.kind == "f" else dtype)
    try:
        position = 0
        for part in in_slices(flat):
            wide[position : position + len(part)] = np.array(part, wide.dtype)
            position += len(part)
        if dtype.kind != "f":
            return wide
        with np.errstate(over="ignore"):
            values = wide.astype(dtype)
        if np.array_equal(np.isinf(values), np.isinf(wide)):
            return values
    except OverflowError:  # an integer beyond the range
        pass
    raise InvalidRequestError(
        f"tensor {name}: a number is out of the range of {datatype}",
        limit=datatype,
        remedy=f"send numbers that {datatype} can hold",
    )


def to_json(tensor: Tensor) -> Any:
    """The values of a tensor as flat `data` that orjson with OPT_SERIALIZE_NUMPY writes.

    Raises:
        InvalidRequestError: NaN or an infinity, which JSON does not have; bytes that are no text.
    """
    values = tensor.values
    if isinstance(values, np.ndarray):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InvalidRequestError(
                f"output {tensor.name} holds NaN or infinities, which JSON cannot",
                value="NaN or infinity",
                limit="finite numbers in JSON",
                remedy="ask for binary data: the parameter binary_data of the output, or binary_data_output of the request",
            )
        flat = np.ascontiguousarray(values).ravel()
        if len(flat) <= _SLICE:
            return flat
        parts = (
            orjson.dumps(part, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for part in np.split(flat, range(_SLICE, len(flat), _SLICE))
        )
        return orjson.Fragment(b"[%b]" % b",".join(parts))
    try:
        return [value if isinstance(value, str) else value.decode() for value in values]
    except UnicodeDecodeError:
        raise InvalidRequestError(
            f"output {tensor.name} holds bytes that are not UTF-8, which JSON cannot",
            value="bytes",
            limit="UTF-8 in JSON",
            remedy="ask for binary data: the parameter binary_data of the output, or binary_data_output of the request",
        ) from None
