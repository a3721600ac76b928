"""The graph that a session loads: an artifact and what to watch in it in, a graph that ONNX Runtime can load out.

What is watched is reduced inside the graph where the compiled operator is at hand; the rest becomes outputs of the graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx
import onnxruntime

from models.artifact import Artifact, ArtifactError
from models.instrument.blocked import layout_probe, read_blocked
from models.instrument.observers import Observer, Pair, Reduction, add_observers
from models.instrument.taps import UnknownTensorError, add_taps
from service.statistics.library import library

Provider = Literal["cpu", "cuda"]
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_MOST_CHANNELS_OF_A_BLOCK = 64


@dataclass(frozen=True)
class PreparedGraph:
    """A graph ready to be loaded.

    Attributes:
        model: the graph in ONNX's format, or the file that holds it.
        output: name of the logits.
        provider: of the sessions that will run it.
        taps: tensors that are outputs, each after the other.
        observers: nodes that reduce tensors; with any, the graph has the input and the outputs that `observers.py` names.
        optimized: whether ONNX Runtime has optimized it already.
    """

    model: bytes | Path
    output: str
    provider: Provider
    taps: tuple[str, ...] = ()
    observers: tuple[Observer, ...] = ()
    optimized: bool = False

    def load(self, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        """A session of it.

        Raises:
            ArtifactError: ONNX Runtime cannot load the graph, or the provider is not installed.
        """
        if _PROVIDERS[self.provider] not in onnxruntime.get_available_providers():
            raise ArtifactError(
                f"ONNX Runtime has no provider {self.provider}; install onnxruntime-gpu, or set NORMSCOPE_PROVIDER=cpu"
            )
        if self.observers:
            options.register_custom_ops_library(str(library()))
            # observers stand where what they read is made, and are to run there
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        if self.optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        providers = list(dict.fromkeys([_PROVIDERS[self.provider], _PROVIDERS["cpu"]]))  # the CPU for what the other cannot do
        model = self.model if isinstance(self.model, bytes) else str(self.model)
        try:
            return onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # ONNX Runtime's and protobuf's exceptions share no base
            raise ArtifactError(f"the graph of {self.output} cannot be loaded: {error}") from error


def prepare(
    artifact: Artifact, provider: Provider = "cpu", reductions: Sequence[Reduction] = (), pairs: Sequence[Pair] = ()
) -> PreparedGraph:
    """The graph of an artifact, in which `reductions` and the dot products of `pairs` are watched; none leaves it as it is.

    Raises:
        ArtifactError: the graph cannot be read, or a tensor is not in it.
    """
    path, output = artifact.model_path, artifact.manifest.outputs[0].name
    if not reductions:
        return PreparedGraph(path, output, provider)
    try:
        return watch(onnx.load(path), output, provider, reductions, pairs)
    except UnknownTensorError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except ArtifactError:
        raise
    except Exception as error:  # onnx's and protobuf's exceptions share no base
        raise ArtifactError(f"{path} cannot be read: {error}") from error


def watch(
    model: onnx.ModelProto, output: str, provider: Provider, reductions: Sequence[Reduction], pairs: Sequence[Pair]
) -> PreparedGraph:
    """A graph, which may be changed, with what is to be watched in it.

    Raises:
        UnknownTensorError: a tensor is not in it.
        ArtifactError: ONNX Runtime cannot load it.
    """
    observers = add_observers(model, reductions, pairs) if provider == "cpu" and library() else []
    seen = {row for observer in observers for row in observer.rows}
    related = {observer.pair for observer in observers}
    taps = [each.tensor for each in reductions if each not in seen]
    taps += [each.tensor for pair in pairs if pair not in related for each in (pair.identity, pair.residual)]
    taps = list(dict.fromkeys(taps))
    graph = PreparedGraph(add_taps(model, taps).SerializeToString(), output, provider, tuple(taps), tuple(observers))
    return _reading_blocks(graph) if observers else graph


def _reading_blocks(graph: PreparedGraph) -> PreparedGraph:
    """The same, optimized, with observers that read ONNX Runtime's blocked layout, where it uses that."""
    block = _block()
    if block is None:
        return graph
    with TemporaryDirectory() as folder:
        file = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(file)
        graph.load(options)
        model = onnx.load(file)
    if not read_blocked(model, block):
        return graph
    return PreparedGraph(model.SerializeToString(), graph.output, graph.provider, graph.taps, graph.observers, optimized=True)


@cache
def _block() -> int | None:
    """Channels in a block of ONNX Runtime's layout on this processor; None where it has none, or not of whole eights."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    x = np.zeros((1, _MOST_CHANNELS_OF_A_BLOCK, 1, 2), np.float32)
    x[0, 0, 0, 1] = 1
    try:
        session = onnxruntime.InferenceSession(
            layout_probe(_MOST_CHANNELS_OF_A_BLOCK).SerializeToString(), options, providers=[_PROVIDERS["cpu"]]
        )
        block = int(np.argmax(session.run(None, {"x": x})[0].ravel()))
    except Exception:  # an operator that this build does not have
        return None
    return block if block % 8 == 0 else None
