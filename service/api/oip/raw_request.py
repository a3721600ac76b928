"""The raw request of the binary data extension: a body that is one input and nothing else, a request out. Knows no HTTP."""

import math
from collections.abc import Sequence

from service.api.oip.binary import from_binary
from service.api.oip.datatypes import BYTES, NUMPY_TYPES, Tensor
from service.api.oip.interface import DeclaredTensor, ModelInterface
from service.api.oip.request import InferRequest
from service.errors import InvalidRequestError


def raw_request(interface: ModelInterface, data: memoryview) -> InferRequest:
    """The request whose body is one encoded image or text, or one row of the only input of the graph; its answer is binary.

    One dimension of the row may be free: it is as long as there are data. Of BYTES the body is the one element, as it is.

    Raises:
        InvalidRequestError: the model takes several inputs, or one of more free dimensions; the data do not fill the row.
    """
    encoded = interface.encoded
    if encoded is not None:
        return InferRequest(None, (Tensor(encoded.name, BYTES, (1,), [bytes(data)]),), binary=True)
    declared = interface.raw[0]
    dimensions = declared.dimensions[1:] if interface.manifest.batched else declared.dimensions
    if len(interface.raw) > 1 or sum(isinstance(extent, str) for extent in dimensions) > 1:
        raise InvalidRequestError(
            f"{interface.manifest.name} does not take one tensor with at most one free dimension, which a body without JSON is",
            limit={each.name: each.shape for each in interface.raw},
            remedy=f"send JSON with {interface.describe_ways()}",
        )
    extents = _fill(declared, dimensions, len(data))
    shape = (1, *extents) if interface.manifest.batched else extents
    values = [bytes(data)] if declared.datatype == BYTES else from_binary(declared.name, declared.datatype, shape, data)
    return InferRequest(None, (Tensor(declared.name, declared.datatype, shape, values),), binary=True)


def _fill(declared: DeclaredTensor, dimensions: Sequence[int | str], size: int) -> tuple[int, ...]:
    """The shape of a row that `size` bytes fill, the free dimension as long as need be."""
    fixed = math.prod(extent for extent in dimensions if isinstance(extent, int))
    if declared.datatype == BYTES:  # the body is one element, of any length
        unit, count = fixed, 1
    else:
        unit, count = fixed * NUMPY_TYPES[declared.datatype].itemsize, size
    free = count // unit
    is_free = any(isinstance(extent, str) for extent in dimensions)
    if free * unit != count or free < 1 or (free > 1 and not is_free):
        given = f"{count} {'element' if declared.datatype == BYTES else 'bytes'}"
        holds = f"{unit} or a multiple" if is_free else str(unit)
        raise InvalidRequestError(
            f"the body has {given}, {declared.datatype} of shape {list(dimensions)} has {holds}",
            value=count,
            limit=unit,
            remedy="send as many as the shape holds, or JSON with the shape",
        )
    return tuple(extent if isinstance(extent, int) else free for extent in dimensions)
