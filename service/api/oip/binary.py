"""Tensors of the protocol as binary data: bytes to values and back, for every datatype. Knows no HTTP and no model.

Elements are little-endian, row-major, without padding; an element of BYTES is its length (uint32) and then its bytes.
"""

import contextlib
import math
import struct
from collections.abc import Sequence

import numpy as np

from service.api.oip.datatypes import BYTES, NUMPY_TYPES, Values
from service.errors import InvalidRequestError

_LENGTH = struct.Struct("<I")


def from_binary(name: str, datatype: str, shape: Sequence[int], data: memoryview) -> Values:
    """The binary data of one tensor to its values; arrays are views of `data`.

    Raises:
        InvalidRequestError: more or fewer bytes than the tensor has, or lengths of BYTES elements that lie.
    """
    if datatype == BYTES:
        return _elements(name, math.prod(shape), data)
    dtype = NUMPY_TYPES[datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise InvalidRequestError(
            f"tensor {name}: {len(data)} bytes of binary data, {datatype} of shape {list(shape)} has {expected}",
            value=len(data),
            limit=expected,
            remedy="send as many bytes as the shape holds",
        )
    if dtype.kind == "b" and (largest := int(np.frombuffer(data, np.uint8).max(initial=0))) > 1:
        raise InvalidRequestError(
            f"tensor {name}: a byte of BOOL data is neither 0 nor 1",
            value=largest,
            limit=1,
            remedy="send 0 for false, 1 for true",
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _elements(name: str, count: int, data: memoryview) -> list[bytes | str]:
    elements: list[bytes | str] = []
    end = 0
    if _LENGTH.size * count <= len(data):
        whole = bytes(data)
        with contextlib.suppress(struct.error):  # where the data end too early
            for _ in range(count):
                start = end + _LENGTH.size
                end = start + _LENGTH.unpack_from(whole, end)[0]
                elements.append(whole[start:end])
    if end != len(data) or len(elements) != count:
        raise InvalidRequestError(
            f"tensor {name}: {len(data)} bytes of binary data are not {count} elements of BYTES",
            value=len(data),
            limit=count,
            remedy="send each element as its length (4 bytes, little-endian) and its bytes, as many elements as the shape holds",
        )
    return elements


def to_binary(values: Values) -> bytes:
    """The binary data of a tensor."""
    if isinstance(values, np.ndarray):
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    parts: list[bytes] = []
    for value in values:
        element = value.encode() if isinstance(value, str) else value
        parts += (_LENGTH.pack(len(element)), element)
    return b"".join(parts)
