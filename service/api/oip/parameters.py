"""Parameters of the protocol: the object `parameters` of a request, an input or an output in, checked values out. Knows no HTTP.

As in Triton, unknown parameters are let through: clients add their own (a codec's content type, a trace id), and some send null for
all that they leave out. What is known must be right: a mistyped value is an error, never ignored.
"""

from collections.abc import Mapping
from typing import Any

from service.errors import InvalidRequestError, NotOfferedError

Parameters = Mapping[str, str | int | float | bool]

_NONE: Parameters = {}


def read_parameters(where: str, container: Mapping[str, Any]) -> Parameters:
    """The parameters that `container` holds; null is none.

    Raises:
        InvalidRequestError: not an object, or a value that is neither string nor number nor boolean.
    """
    found = container.get("parameters")
    if found is None:
        return _NONE
    if not isinstance(found, dict):
        raise InvalidRequestError(
            f"parameters of {where} are not an object", value=type(found).__name__, limit="object", remedy="send an object"
        )
    for name, value in found.items():
        if value is not None and not isinstance(value, (str, int, float)):
            raise InvalidRequestError(
                f"parameter {name[:100]} of {where} is neither string nor number nor boolean",
                value=type(value).__name__,
                limit="string, number or boolean",
                remedy="send a plain value",
            )
    return {name: value for name, value in found.items() if value is not None} if None in found.values() else found


def read_flag(where: str, parameters: Parameters, name: str) -> bool | None:
    """A boolean parameter, None if it is not given.

    Raises:
        InvalidRequestError: it is not a boolean.
    """
    value = parameters.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise InvalidRequestError(
        f"parameter {name} of {where} is not a boolean", value=value, limit="true or false", remedy="send true or false"
    )


def read_count(where: str, parameters: Parameters, name: str) -> int | None:
    """A parameter that is an integer from 0, None if it is not given.

    Raises:
        InvalidRequestError: it is no such integer.
    """
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise InvalidRequestError(
        f"parameter {name} of {where} is not an integer from 0",
        value=value,
        limit="an integer from 0",
        remedy="send an integer, or leave it out",
    )


def refuse_shared_memory(where: str, parameters: Parameters) -> None:
    """Values lie in the body alone.

    Raises:
        NotOfferedError: the parameters name a region of shared memory.
    """
    if "shared_memory_region" in parameters:
        raise NotOfferedError(
            f"{where} asks for shared memory, which is not offered",
            value=parameters["shared_memory_region"],
            remedy="send and receive tensors in the body, as binary data where it counts",
        )


def refuse_sequence(parameters: Parameters) -> None:
    """Every request stands alone; answering one of a sequence would hide that nothing is remembered.

    Raises:
        NotOfferedError: the request belongs to a sequence.
    """
    if parameters.get("sequence_id") or parameters.get("sequence_start") or parameters.get("sequence_end"):
        raise NotOfferedError(
            "the request belongs to a sequence, which is not offered: the models keep no state",
            value=parameters.get("sequence_id"),
            remedy="leave out sequence_id, sequence_start and sequence_end",
        )


def refuse_overrides(parameters: Parameters) -> None:
    """A model is what lies in the repository; nothing of it comes with a request to load it.

    Raises:
        NotOfferedError: the parameters hold a configuration or files.
    """
    if overrides := [name for name in parameters if name == "config" or name.startswith("file:")]:
        raise NotOfferedError(
            f"a model cannot be loaded with {overrides[0][:100]} from the request",
            value=overrides[0],
            remedy="put the files into the repository, and load the model without parameters",
        )
