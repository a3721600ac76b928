"""An inference request of the protocol: JSON and binary data in, a request whose every tensor fits the model out. Knows no HTTP."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.api.oip.binary import from_binary
from service.api.oip.datatypes import BYTES, Tensor, from_json
from service.api.oip.interface import DeclaredTensor, ModelInterface
from service.api.oip.layer_statistics import LEVELS
from service.api.oip.parameters import (
    Parameters,
    read_count,
    read_flag,
    read_parameters,
    refuse_sequence,
    refuse_shared_memory,
)
from service.api.schemas import Level
from service.errors import InvalidRequestError
from service.settings import Settings

_REQUEST = "the request"
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the request lists; `classes` above 0 asks for as many of the best classes instead of the values."""

    name: str
    binary: bool | None = None
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One checked request.

    Attributes:
        id: echoed in the answer.
        tensors: the encoded input alone, or all raw ones in the order of the model.
        outputs: as listed; empty for those of the metadata.
        binary: whether outputs that say nothing go as binary data; None if the request says nothing either.
        level: layer statistics to add.
        timeout_s: seconds until the request is given up, None for the service's own limit.
    """

    id: str | None
    tensors: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    binary: bool | None = None
    level: Level = "none"
    timeout_s: float | None = None


def parse_request(content: Mapping[str, Any], binary: memoryview, interface: ModelInterface, settings: Settings) -> InferRequest:
    """Checks a request against the model.

    Args:
        content: its JSON.
        binary: the binary data of its inputs, in their order.
        interface: of the model.
        settings: with the largest batch, and the most numbers in one of its inputs.

    Raises:
        InvalidRequestError: anything in it is not as the protocol or the model has it.
        NotOfferedError: it asks for shared memory or a sequence.
    """
    identity = content.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InvalidRequestError("id is not a string", value=type(identity).__name__, limit="string", remedy="send a string")
    parameters = read_parameters(_REQUEST, content)
    refuse_sequence(parameters)
    read_count(_REQUEST, parameters, "priority")  # every request has the same
    timeout_us = read_count(_REQUEST, parameters, "timeout")
    return InferRequest(
        identity,
        _read_inputs(_objects(content, "inputs"), binary, interface, settings),
        tuple(map(_read_output, _objects(content, "outputs"))),
        read_flag(_REQUEST, parameters, "binary_data_output"),
        _read_level(parameters),
        timeout_us / _MICROSECONDS if timeout_us else None,
    )


def _objects(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = content.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in found):
        raise InvalidRequestError(
            f"{name} is not an array of objects with a name",
            value=type(found).__name__,
            limit="array of objects",
            remedy=f'send "{name}": [{{"name": ...}}]',
        )
    return found


def _read_level(parameters: Parameters) -> Level:
    value = parameters.get("layer_statistics", "none")
    for level in LEVELS:
        if value == level:
            return level
    raise InvalidRequestError(
        f"parameter layer_statistics is {str(value)[:40]!r}", value=value, limit=LEVELS, remedy=f"send one of {', '.join(LEVELS)}"
    )


def _read_inputs(
    entries: list[dict[str, Any]], binary: memoryview, interface: ModelInterface, settings: Settings
) -> tuple[Tensor, ...]:
    tensors: dict[str, Tensor] = {}
    extents: dict[int | str, int] = {}
    position = 0
    for entry in entries:
        name = entry["name"]
        declared = interface.inputs.get(name)
        if declared is None or name in tensors:
            raise InvalidRequestError(
                f"input {name[:100]} is {'not known to the model' if declared is None else 'given twice'}",
                value=name,
                limit=list(interface.inputs),
                remedy=f"send {interface.describe_ways()}",
            )
        shape = _read_shape(entry, declared, extents, settings.max_inputs if interface.manifest.batched else None)
        if declared.datatype == BYTES:
            _check_elements(name, math.prod(shape[1:] if interface.manifest.batched else shape), settings.max_batch_elements)
        parameters = read_parameters(f"input {name}", entry)
        refuse_shared_memory(f"input {name}", parameters)
        size = read_count(f"input {name}", parameters, "binary_data_size")
        data = entry.get("data")
        if (size is None) == (data is None):
            raise InvalidRequestError(
                f"input {name} has {'neither data nor' if data is None else 'both data and'} binary_data_size",
                remedy="send its values either in data or as binary data",
            )
        if size is None:
            values = from_json(name, declared.datatype, shape, data)
        else:
            values = from_binary(name, declared.datatype, shape, binary[position : position + size])
            position += size
        tensors[name] = Tensor(name, declared.datatype, shape, values)
    if position != len(binary):
        raise InvalidRequestError(
            f"{len(binary)} bytes of binary data, the inputs tell of {position}",
            value=len(binary),
            limit=position,
            remedy="give each binary input its binary_data_size, in the order of the data",
        )
    return _one_way(tensors, interface)


def _check_elements(name: str, elements: int, limit: int) -> None:
    """Refuses strings that the engine would refuse, before each is read by itself."""
    if elements > limit:
        raise InvalidRequestError(
            f"one input of {name} has {elements} strings, more than {limit}",
            value=elements,
            limit=limit,
            remedy="send a smaller one, or raise NORMSCOPE_MAX_BATCH_ELEMENTS",
        )


def _one_way(tensors: Mapping[str, Tensor], interface: ModelInterface) -> tuple[Tensor, ...]:
    for way in interface.ways:
        if tensors.keys() == {declared.name for declared in way}:
            return tuple(tensors[declared.name] for declared in way)
    raise InvalidRequestError(
        f"the inputs are {', '.join(tensors) or 'none'}",
        value=list(tensors),
        limit=list(interface.inputs),
        remedy=f"send {interface.describe_ways()}",
    )


def _read_shape(
    entry: Mapping[str, Any], declared: DeclaredTensor, extents: dict[int | str, int], max_rows: int | None
) -> tuple[int, ...]:
    """The shape of an input, checked with its datatype; `extents` holds what named dimensions were in the inputs before."""
    where = f"input {declared.name}"
    if entry.get("datatype") != declared.datatype:
        raise InvalidRequestError(
            f"{where} has the datatype {reprlib.repr(entry.get('datatype'))}, the model takes {declared.datatype}",
            value=entry.get("datatype"),
            limit=declared.datatype,
            remedy=f"send {declared.datatype}",
        )
    shape = entry.get("shape")
    before = dict(extents)
    fits = (
        isinstance(shape, list)
        and len(shape) == len(declared.dimensions)
        and all(type(extent) is int and extent > 0 for extent in shape)
        and all(
            extents.setdefault(dimension, dimension if isinstance(dimension, int) else extent) == extent
            for dimension, extent in zip(declared.dimensions, shape, strict=True)
        )
    )
    if not fits:
        wanted = [before.get(dimension, dimension) for dimension in declared.dimensions]
        raise InvalidRequestError(
            f"{where} has the shape {reprlib.repr(shape)}, the model takes {wanted}",
            value=shape,
            limit=wanted,
            remedy="send that shape: one number from 1 for each dimension, the same for the same name",
        )
    assert isinstance(shape, list)  # part of `fits`
    if max_rows is not None and shape[0] > max_rows:
        raise InvalidRequestError(
            f"{where} has {shape[0]} rows, more than {max_rows}",
            value=shape[0],
            limit=max_rows,
            remedy="split the request, or raise NORMSCOPE_MAX_INPUTS",
        )
    return tuple(shape)


def _read_output(entry: Mapping[str, Any]) -> RequestedOutput:
    where = f"output {entry['name'][:100]}"
    parameters = read_parameters(where, entry)
    refuse_shared_memory(where, parameters)
    return RequestedOutput(
        entry["name"],
        read_flag(where, parameters, "binary_data"),
        read_count(where, parameters, "classification") or 0,
    )
