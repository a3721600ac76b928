"""The tensors of a checked request -> the items that the engine takes: encoded images, texts or rows. Knows no HTTP."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.api.inputs import from_base64
from service.api.oip.datatypes import BYTES, Tensor, in_slices
from service.api.oip.interface import ModelInterface
from service.engine.inputs import Item, TensorInput
from service.errors import InvalidRequestError


def read_items(tensors: Sequence[Tensor], interface: ModelInterface) -> list[Item]:
    """One item for each row of the batch, or one for all where the model has no batch.

    Args:
        tensors: of an `InferRequest`.
        interface: of the same model.

    Raises:
        InvalidRequestError: a text that is not UTF-8, an image in JSON that is not base64.
    """
    if interface.encoded is not None and tensors[0].name == interface.encoded.name:
        read = _read_image if interface.takes_images else _read_text
        return [read(i, value) for i, value in enumerate(tensors[0].values)]
    arrays = tuple(_read_array(tensor) for tensor in tensors)
    if not interface.manifest.batched:
        return [TensorInput(arrays)]
    return [TensorInput(row) for row in zip(*arrays, strict=True)]


def _read_array(tensor: Tensor) -> NDArray[Any]:
    if tensor.datatype != BYTES:
        return np.asarray(tensor.values)
    assert not isinstance(tensor.values, np.ndarray)  # BYTES never are
    array = np.empty(len(tensor.values), object)
    position = 0
    for part in in_slices(tensor.values):
        array[position : position + len(part)] = [_read_text(i, value) for i, value in enumerate(part, position)]
        position += len(part)
    return array.reshape(tensor.shape)


def _read_image(index: int, value: bytes | str) -> bytes:
    return from_base64(index, value) if isinstance(value, str) else value


def _read_text(index: int, value: bytes | str) -> str:
    try:
        return value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"text {index} is not UTF-8 ({error.reason} at byte {error.start})",
            value=error.reason,
            limit="UTF-8",
            remedy="encode texts as UTF-8",
        ) from None
