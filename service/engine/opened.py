"""The opened graph of a model, loaded when it is first needed: one input in, logits and whole activations out. Knows no HTTP.

It is another copy of the weights beside the sessions that serve, and its activations are all alive until the run ends; so it runs
one input at a time, outside of the arena that the other sessions share, and gives the memory of a run back. Measured for ResNet-50:
opened in 0.3 s, 91 MB resident, and 125 MB more while every activation of a photo of 224 px is out; for the encoder 8 MB.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from models.artifact import Artifact
from models.instrument.detached import detach_weights
from models.instrument.opened import Place, open_graph
from models.instrument.renormalize import Renormalization, RenormalizationError
from service.engine.graph import PreparedGraph, Provider
from service.engine.memory import give_back_memory
from service.engine.session import Feed
from service.errors import InvalidRequestError, NotOfferedError

_log = logging.getLogger("normscope")
_NO_RENORMALIZATIONS: Mapping[str, Renormalization] = MappingProxyType({})


@dataclass(frozen=True)
class OpenedRun:
    """Of one input: the outputs of the model, and the activations (1, ...) by tensor."""

    outputs: tuple[NDArray[Any], ...]
    tensors: Mapping[str, NDArray[np.floating]]


class OpenedSession:
    """One loaded opened graph. `run` may be called from several threads at once.

    Attributes:
        layers: those of the manifest by name, with the tensors that are outputs here.
        places: what is open of each.
    """

    def __init__(
        self, artifact: Artifact, provider: Provider, renormalizations: Mapping[str, Renormalization] = _NO_RENORMALIZATIONS
    ) -> None:
        """Opens and loads the graph of an artifact; takes as long as loading a model does.

        Raises:
            InvalidRequestError: a layer cannot compute another formula.
            NotOfferedError: the graph cannot be opened.
        """
        manifest = artifact.manifest
        self._outputs = tuple(spec.name for spec in manifest.outputs)
        try:
            tensors = {layer.layer: layer.tensors for layer in manifest.layers}
            model = onnx.load(artifact.model_path)
            weights = detach_weights(model)  # rewriting a graph with its weights would hold up the event loop
            opened = open_graph(model, tensors, renormalizations)
            graph = PreparedGraph(opened.model.SerializeToString(), self._outputs, provider)
            options = _options()
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(weight) for weight in weights.values()]
            options.add_external_initializers(list(weights), values)
            self._session = graph.load(options)
        except RenormalizationError as error:
            raise InvalidRequestError(
                f"normalization: {error}", value=str(error), remedy="change the normalization of other layers"
            ) from None
        except Exception as error:  # onnx's, protobuf's and ONNX Runtime's exceptions share no base
            _log.error("%s cannot be opened", artifact.folder, exc_info=error)  # clients are not told: it names files
            raise NotOfferedError(
                f"the inside of {manifest.name} cannot be opened ({type(error).__name__})",
                value=manifest.name,
                remedy="use statistics=summary or channels; the log of the service says more",
            ) from error
        self.places: Mapping[str, Place] = opened.places
        self.layers = {
            layer.layer: layer.model_copy(update={"tensors": dict(opened.places[layer.layer].tensors)}) for layer in manifest.layers
        }
        del model, weights, values, options, opened, graph
        give_back_memory()

    def run(self, feed: Feed, layers: Sequence[str], values: Mapping[str, NDArray[Any]] | None = None) -> OpenedRun:
        """Runs one input (1, ...) and hands out the tensors of these layers.

        Args:
            feed: of the model.
            layers: whose activations are wanted.
            values: of inputs that the graph opened; those that are left out change nothing.
        """
        names = list(dict.fromkeys(tensor for layer in layers for tensor in self.layers[layer].tensors.values()))
        arrays = self._session.run([*self._outputs, *names], {**feed, **(values or {})})
        own = len(self._outputs)
        return OpenedRun(tuple(arrays[:own]), dict(zip(names, arrays[own:], strict=True)))


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the other cores are for traffic
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 3
    return options
