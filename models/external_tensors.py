"""Where an ONNX model keeps weights outside of its file: a model in, its tensors with external data out."""

from collections.abc import Iterator

import onnx
from google.protobuf.message import Message


def external_locations(model: onnx.ModelProto) -> list[onnx.StringStringEntryProto]:
    """The entries that name files of external data, wherever in the model a tensor may be; they may be changed."""
    return [entry for tensor in _tensors(model) for entry in tensor.external_data if entry.key == "location"]


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """All tensors below a message: constants of graphs, attributes, subgraphs and functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if isinstance(value, Message) else value:
                yield from _tensors(each)
