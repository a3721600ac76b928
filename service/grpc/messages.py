"""The generated messages and services: what lies in a message in, plain values out, and back. Knows no model and no HTTP.

The only module that touches generated classes, which have no types; the protocols below name the fields that are read.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2

from service.api.oip.binary import to_binary
from service.api.oip.datatypes import BYTES, Tensor, in_slices
from service.errors import InvalidRequestError

_DESCRIPTOR = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
SERVICE: str = _DESCRIPTOR.full_name
METHODS: frozenset[str] = frozenset(_DESCRIPTOR.methods_by_name)
ALWAYS_OPEN = frozenset({"ServerLive", "ServerReady"})
"""The methods that need no key, and are answered in every state."""
HEALTH: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

Fields = Mapping[str, object]
"""The fields of a message by name, as JSON has them."""
Behaviour = Callable[[Any, Any], Awaitable[None]]
"""What a method does: reads messages as bytes from its context (the second argument), and writes messages to it."""
_REQUESTS: Mapping[str, Any] = {
    name: getattr(service_pb2, method.input_type.name) for name, method in _DESCRIPTOR.methods_by_name.items()
}

_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


class NamedModel(Protocol):
    """A request about a model; an empty version is the newest, or all."""

    name: str
    version: str


class IndexRequest(Protocol):
    """A request for the index of the repository."""

    ready: bool


class RepositoryRequest(Protocol):
    """A request to load or unload a model."""

    model_name: str
    parameters: "Mapping[str, Message]"


class InferenceRequest(Protocol):
    """A request for an inference; its tensors are read by `read_inference` alone."""

    model_name: str
    model_version: str
    id: str


def read_request(method: str, data: bytes) -> Any:
    """The request that a message holds.

    Raises:
        InvalidRequestError: the bytes are no such message.
    """
    return _read(_REQUESTS[method], data)


def read_health(data: object) -> str:
    """The service that a message to the health service asks about.

    Raises:
        InvalidRequestError: there is no message, or the bytes are no such one.
    """
    return str(_read(health_pb2.HealthCheckRequest, data).service)


def _read(kind: Any, data: object) -> Any:
    try:
        if isinstance(data, bytes):
            return kind.FromString(data)
    except DecodeError:
        pass
    expected = kind.DESCRIPTOR.full_name
    raise InvalidRequestError(
        f"the message is not of the type {expected}", limit=expected, remedy="send what the reflection service describes"
    )


def model_of(request: Any) -> str:
    """The model that a request names, empty if none."""
    return str(getattr(request, "model_name", "") or getattr(request, "name", ""))


def read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without those that hold nothing."""
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], kind) for name, kind in chosen.items() if kind is not None}


def read_inference(request: Any) -> tuple[dict[str, Any], memoryview]:
    """A request as it would be over HTTP: its JSON, and the binary data of its inputs.

    Raises:
        InvalidRequestError: values are given in two ways, for another datatype, or not for every input.
    """
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequestError(
            f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs",
            value=len(raw),
            limit=len(request.inputs),
            remedy="give all inputs in raw_input_contents, in their order, or all in contents",
        )
    parts: list[bytes] = []
    inputs = []
    for i, tensor in enumerate(request.inputs):
        entry = {**_describe(tensor), "datatype": tensor.datatype, "shape": list(tensor.shape)}
        values = _typed_values(tensor, raw_is_given=bool(raw))
        if raw or tensor.datatype == BYTES:
            part = raw[i] if raw else to_binary(values)
            entry["parameters"]["binary_data_size"] = len(part)
            parts.append(part)
        else:
            entry["data"] = values
        inputs.append(entry)
    content = {
        "id": request.id,
        "parameters": read_parameters(request.parameters),
        "inputs": inputs,
        "outputs": [_describe(output) for output in request.outputs],
    }
    return content, memoryview(parts[0] if len(parts) == 1 else b"".join(parts))


def _describe(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "parameters": read_parameters(tensor.parameters)}


def _typed_values(tensor: Any, *, raw_is_given: bool) -> list[Any]:
    expected = _CONTENTS.get(tensor.datatype)
    given = [field.name for field, _ in tensor.contents.ListFields()]
    if given and (raw_is_given or given != [expected]):
        allowed = "raw_input_contents" if raw_is_given or expected is None else expected
        raise InvalidRequestError(
            f"input {tensor.name[:100]} of {tensor.datatype[:40]} has {', '.join(given)}"
            f"{' beside raw_input_contents' if raw_is_given else ''}",
            value=given,
            limit=allowed,
            remedy=f"send its values in {allowed} alone",
        )
    return [value for part in in_slices(getattr(tensor.contents, given[0])) for value in part] if given else []


def make_reply(method: str, fields: Fields) -> Message:
    """The reply of a method."""
    reply: Message = ParseDict(dict(fields), getattr(service_pb2, f"{method}Response")())
    return reply


def make_inference(model: str, version: str, identity: str, parameters: Mapping[str, int], tensors: Iterable[Tensor]) -> Message:
    """The reply of an inference."""
    reply = service_pb2.ModelInferResponse(model_name=model, model_version=version, id=identity)
    for name, value in parameters.items():
        reply.parameters[name].int64_param = value
    for tensor in tensors:
        reply.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        reply.raw_output_contents.append(to_binary(tensor.values))
    return _typed(reply)


def in_stream(reply: Any) -> Message:
    """The reply of an inference as the one and last message that a stream answers its request with."""
    reply.parameters["triton_final_response"].bool_param = True
    return _typed(service_pb2.ModelStreamInferResponse(infer_response=reply))


def error_in_stream(request: InferenceRequest | None, text: str) -> Message:
    """The message of a stream that tells of an error; names the request if it could be read: a stream answers several."""
    if request is None:
        return _typed(service_pb2.ModelStreamInferResponse(error_message=text))
    named = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=request.model_version, id=request.id)
    return _typed(service_pb2.ModelStreamInferResponse(error_message=text, infer_response=named))


def make_health(status: str) -> Message:
    """The reply of the health service: SERVING, NOT_SERVING or SERVICE_UNKNOWN."""
    return _typed(health_pb2.HealthCheckResponse(status=status))


def _to_bytes(message: Message) -> bytes:
    return message.SerializeToString()


def _typed(message: Any) -> Message:
    assert isinstance(message, Message)
    return message


def add_services(server: grpc.aio.Server, inference: Mapping[str, Behaviour], health: Mapping[str, Behaviour]) -> None:
    """Offers inference and health by their methods, and the reflection of all.

    Handlers of streams fit any call. Those that the package generates for single messages read the message themselves: without a
    limit of time, and with a code that tells of a fault of the service where the message is broken.
    """
    for service, behaviours in ((SERVICE, inference), (HEALTH, health)):
        handlers: dict[str, grpc.RpcMethodHandler[bytes, Message]] = {
            name: grpc.stream_stream_rpc_method_handler(behaviour, response_serializer=_to_bytes)
            for name, behaviour in behaviours.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    reflection.enable_server_reflection((SERVICE, HEALTH, reflection.SERVICE_NAME), server)
