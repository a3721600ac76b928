"""The opened graph of a model, loaded when it is first needed: one input in, logits and whole activations out. Knows no HTTP.

It is a second copy of the weights beside the sessions that serve, and its activations are all alive until the run ends; so it runs
one input at a time, outside of the arena that the other sessions share, and gives the memory of a run back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from models.artifact import Artifact
from models.instrument.opened import Place, open_graph
from service.engine.graph import PreparedGraph, Provider
from service.engine.memory import give_back_memory
from service.engine.session import Feed
from service.errors import NotOfferedError

Tensors = dict[str, NDArray[np.floating]]


@dataclass(frozen=True)
class OpenedRun:
    """Of one input: logits float32 (1, classes), and layer -> side -> activation (1, ...)."""

    logits: NDArray[np.float32]
    tensors: Mapping[str, Tensors]


class OpenedSession:
    """One loaded opened graph. `run` may be called from several threads at once."""

    def __init__(self, artifact: Artifact, provider: Provider) -> None:
        """Opens and loads the graph of an artifact; takes as long as loading a model does.

        Raises:
            NotOfferedError: it cannot be opened.
        """
        manifest = artifact.manifest
        self._output = manifest.outputs[0].name
        try:
            opened = open_graph(onnx.load(artifact.model_path), {layer.layer: layer.tensors for layer in manifest.layers})
            graph = PreparedGraph(opened.model.SerializeToString(), self._output, provider)
            self._session = graph.load(_options())
        except Exception as error:  # onnx's, protobuf's and ONNX Runtime's exceptions share no base
            raise NotOfferedError(
                f"the inside of {manifest.name} cannot be opened ({error})"[:500],
                value=manifest.name,
                remedy="use statistics=summary or channels",
            ) from error
        self.places: Mapping[str, Place] = opened.places
        del opened, graph  # copies of all weights
        give_back_memory()

    def run(self, feed: Feed, layers: Sequence[str], values: Mapping[str, NDArray[Any]] | None = None) -> OpenedRun:
        """Runs one input (1, ...) and hands out the sides of these layers.

        Args:
            feed: of the model.
            layers: whose activations are wanted.
            values: of inputs that the graph opened; those that are left out change nothing.
        """
        names = list(dict.fromkeys(tensor for layer in layers for tensor in self.places[layer].tensors.values()))
        logits, *arrays = self._session.run([self._output, *names], {**feed, **(values or {})})
        found = dict(zip(names, arrays, strict=True))
        return OpenedRun(
            logits, {layer: {side: found[tensor] for side, tensor in self.places[layer].tensors.items()} for layer in layers}
        )


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the other cores are for traffic
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 3
    return options
