"""What a client asks: the server that the environment names, and the calls that both Triton clients must find."""

import inspect
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput

ADDRESS = os.environ.get("TARGET_GRPC", "")
URL = os.environ.get("TARGET_HTTP", "")
PROCESS = int(os.environ.get("TARGET_PROCESS", "0"))
KEYS = {"plain": "a-plain-key", "admin": "an-admin-key"}

NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "get_system_shared_memory_status": (),
    "register_system_shared_memory": ("region", "/key", 8),
    "unregister_system_shared_memory": (),
    "get_cuda_shared_memory_status": (),
    "register_cuda_shared_memory": ("region", b"aGFuZGxl", 0, 8),
    "unregister_cuda_shared_memory": (),
    "get_trace_settings": (),
    "update_trace_settings": (),
    "get_log_settings": (),
    "update_log_settings": ({},),
}
CALLS: list[tuple[str, tuple[Any, ...], Callable[[Any], bool]]] = [
    # call, arguments, what holds of its result; in this order
    ("is_server_live", (), lambda live: live is True),
    ("is_server_ready", (), lambda ready: ready is True),
    ("is_model_ready", ("text",), lambda ready: ready is True),
    ("is_model_ready", ("text", "1"), lambda ready: ready is True),
    ("is_model_ready", ("nope",), lambda ready: ready is False),
    ("get_server_metadata", (), lambda metadata: metadata.name == "normscope" and "statistics" in metadata.extensions),
    ("get_model_metadata", ("text",), lambda metadata: metadata.versions == ["1"]),
    ("get_model_metadata", ("text", "1"), lambda metadata: metadata.outputs[0].name == "logits"),
    ("get_model_config", ("text",), lambda answer: answer.config.max_batch_size == 32),
    ("get_model_config", ("text", "1"), lambda answer: answer.config.input[0].optional),
    ("get_inference_statistics", (), lambda statistics: len(statistics.model_stats) == 2),
    ("get_inference_statistics", ("text",), lambda statistics: statistics.model_stats[0].name == "text"),
    ("get_inference_statistics", ("text", "1"), lambda statistics: statistics.model_stats[0].version == "1"),
    ("get_model_repository_index", (), lambda index: [entry.state for entry in index.models] == ["READY", "READY"]),
    ("unload_model", ("text",), lambda nothing: nothing is None),
    ("is_model_ready", ("text",), lambda ready: ready is False),
    ("load_model", ("text",), lambda nothing: nothing is None),
    ("is_model_ready", ("text",), lambda ready: ready is True),
]


def public_calls(client: type) -> set[str]:
    """The names of a client's calls that reach a server, without those that infer or are about the client itself."""
    public = {name for name, _ in inspect.getmembers(client, inspect.isfunction) if not name.startswith("_")}
    return public - {"close", "plugin", "register_plugin", "unregister_plugin"}


def texts(*sentences: str) -> InferInput:
    """The BYTES input of the text model."""
    tensor = InferInput("text", [len(sentences)], "BYTES")
    tensor.set_data_from_numpy(np.array([each.encode() for each in sentences], np.object_))
    return tensor
