"""The graph that a session loads: an artifact and what to watch in it in, a graph that ONNX Runtime can load out.

What is watched is reduced inside the graph where the compiled operator is at hand; the rest becomes outputs of the graph.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from models.artifact import Artifact, ArtifactError
from models.instrument.attention import fuse_attention
from models.instrument.blocked import layout_probe, read_blocked
from models.instrument.detached import detach_weights
from models.instrument.graph_file import read_graph
from models.instrument.observers import Observer, Pair, Reduction, add_observers
from models.instrument.scores import add_scores
from models.instrument.taps import UnknownTensorError, add_taps, widen
from service.engine.weights import Weights
from service.statistics.library import library

Provider = Literal["cpu", "cuda"]
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_SLOWER = ["SkipLayerNormFusion"]  # on the CPU: an addition and a layer normalization take less time than both in one
_MOST_CHANNELS_OF_A_BLOCK = 64
_MOST_BYTES = 1 << 30  # of a model that is changed as one piece; protobuf ends at 2 GiB
_SMALL = 1 << 12  # elements of weights of which each session has its own


@dataclass(frozen=True)
class PreparedGraph:
    """A graph ready to be loaded.

    Attributes:
        model: the graph in ONNX's format, or the file that holds it.
        outputs: names of those of the model.
        provider: of the sessions that will run it.
        taps: tensors that are outputs, each after the other.
        widened: tap -> the output that stands for it, where they differ.
        observers: nodes that reduce tensors; with any, the graph has the input and the outputs that `observers.py` names.
        scored: whether it has the outputs that `scores.py` names.
        optimized: whether ONNX Runtime has optimized it already.
        weights: the folder of the weights that `model` does not hold.
        shared: weights by name that `model` does not hold either; those of an optimized graph all its sessions read in place.
    """

    model: bytes | Path
    outputs: tuple[str, ...]
    provider: Provider
    taps: tuple[str, ...] = ()
    observers: tuple[Observer, ...] = ()
    scored: bool = False
    optimized: bool = False
    widened: Mapping[str, str] = field(default_factory=dict)
    weights: Path | None = None
    shared: Mapping[str, onnxruntime.OrtValue] = field(default_factory=dict)

    def load(self, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        """A session of it; whoever keeps it keeps `shared` too.

        Raises:
            ArtifactError: ONNX Runtime cannot load the graph, or the provider is not installed or does not start.
        """
        check_installed(self.provider, onnxruntime.get_available_providers())
        if self.observers:
            options.register_custom_ops_library(str(library()))
            # observers stand where what they read is made, and are to run there
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        if self.optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self.weights is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self.weights))
        if self.shared:
            options.add_external_initializers(list(self.shared), list(self.shared.values()))
        for name, value in self.shared.items() if self.optimized else ():
            options.add_initializer(name, value)  # in place of the copy
        providers = list(dict.fromkeys([_PROVIDERS[self.provider], _PROVIDERS["cpu"]]))  # the CPU for what the other cannot do
        model = self.model if isinstance(self.model, bytes) else str(self.model)
        slower = _SLOWER if self.provider == "cpu" else []
        try:
            session = onnxruntime.InferenceSession(model, options, providers=providers, disabled_optimizers=slower)
        except Exception as error:  # ONNX Runtime's and protobuf's exceptions share no base
            raise ArtifactError("ONNX Runtime cannot load the graph; export or import the model again") from error
        check_started(self.provider, session.get_providers())
        session.disable_fallback()  # a run that fails would go on, on the CPU, for ever
        session._model_bytes = None  # a copy of the graph, kept for that alone
        return session


def check_installed(provider: Provider, available: Sequence[str]) -> None:
    """Returns if `provider` is among those that ONNX Runtime was built with, by its names.

    Raises:
        ArtifactError: it is not.
    """
    if _PROVIDERS[provider] not in available:
        raise ArtifactError(
            f"ONNX Runtime has no provider {provider}, only {', '.join(available)}; install onnxruntime-gpu in place of "
            "onnxruntime, or set NORMSCOPE_PROVIDER=cpu"
        )


def check_started(provider: Provider, started: Sequence[str]) -> None:
    """Returns if `provider` is among those of a session: without its libraries or a device, ONNX Runtime takes the CPU instead.

    Raises:
        ArtifactError: it is not.
    """
    if _PROVIDERS[provider] not in started:
        raise ArtifactError(
            f"ONNX Runtime could not start its provider {provider}, and would run on {', '.join(started)}; install the CUDA and "
            "cuDNN libraries that it names on standard error, make the GPU visible (nvidia-smi lists it), or set "
            "NORMSCOPE_PROVIDER=cpu"
        )


def prepare(
    artifact: Artifact,
    provider: Provider = "cpu",
    reductions: Sequence[Reduction] = (),
    pairs: Sequence[Pair] = (),
    held: Weights | None = None,
) -> PreparedGraph:
    """The graph of an artifact, in which `reductions` and the dot products of `pairs` are watched; none leaves it as it is.

    Of a classifier it also makes the scores and the order of the classes, unless it is passed on as a file. Its weights are held
    once with those of other graphs of the artifact that were prepared with the same `held`.

    Raises:
        ArtifactError: the graph cannot be read, or a tensor is not in it.
    """
    path = artifact.model_path
    outputs = tuple(spec.name for spec in artifact.manifest.outputs)
    size = sum((artifact.folder / name).stat().st_size for name in artifact.manifest.files)
    try:
        if not reductions and (provider != "cpu" or size > _MOST_BYTES):
            return PreparedGraph(path, outputs, provider)
        whole = size <= _MOST_BYTES
        model = onnx.load(path) if whole else read_graph(path)
        chosen = artifact.manifest.scores_output
        scored = chosen is not None and add_scores(model, outputs[chosen], probabilities=artifact.manifest.probabilities)
        graph = watch(model, outputs, provider, reductions, pairs, weights=None if whole else artifact.folder, held=held)
        return replace(graph, scored=scored)
    except UnknownTensorError as error:
        raise ArtifactError(str(error)) from error
    except ArtifactError:
        raise
    except Exception as error:  # onnx's and protobuf's exceptions share no base
        raise ArtifactError("the graph cannot be read or watched; export or import the model again") from error


def watch(
    model: onnx.ModelProto,
    outputs: tuple[str, ...],
    provider: Provider,
    reductions: Sequence[Reduction],
    pairs: Sequence[Pair],
    weights: Path | None = None,
    held: Weights | None = None,
) -> PreparedGraph:
    """A graph, which may be changed, with what is to be watched in it.

    Args:
        model: with its weights, or without those that lie in the folder `weights`; then it is not optimized before it is loaded,
            so observers cannot read the blocked layout of convolutions: such a graph is too large to be passed on whole.
        outputs: names of those of the model.
        provider: of the sessions that will run it.
        reductions: what is watched.
        pairs: residual adds whose dot products are watched.
        weights: see `model`.
        held: those of other graphs, with which it shares what is equal.

    Raises:
        UnknownTensorError: a tensor is not in it.
        ArtifactError: ONNX Runtime cannot load it.
    """
    observers = add_observers(model, reductions, pairs) if reductions and provider == "cpu" and library() else []
    seen = {row for observer in observers for row in observer.rows}
    related = {observer.pair for observer in observers}
    taps = [each.tensor for each in reductions if each not in seen]
    taps += [each.tensor for pair in pairs if pair not in related for each in (pair.identity, pair.residual)]
    taps = list(dict.fromkeys(taps))
    optimized = provider == "cpu" and weights is None
    detached = detach_weights(model) if optimized else {}  # else each change below would copy them
    widened = widen(model, taps)
    tapped = add_taps(model, [widened.get(tap, tap) for tap in taps])
    if optimized:
        fuse_attention(tapped)
    proto = tapped.SerializeToString()
    graph = PreparedGraph(proto, outputs, provider, tuple(taps), tuple(observers), widened=widened, weights=weights)
    return _optimize(graph, detached, held or Weights()) if optimized else graph


def _optimize(graph: PreparedGraph, detached: dict[str, NDArray[np.floating]], held: Weights) -> PreparedGraph:
    """The same, optimized once for all its sessions, which share its weights: those of the shipped ResNet-50 take 94 MB.

    Its observers read ONNX Runtime's blocked layout, where it uses that.

    Args:
        graph: without the weights in `detached`.
        detached: by name; this is emptied, since each copy of the weights counts while a model is loaded.
        held: those of other graphs.
    """
    with _scratch_file() as file:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(file)
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(weight) for name, weight in detached.items()}
        replace(graph, shared=values).load(options)
        detached.clear()
        del values, options
        model = onnx.load(file)
    if graph.observers and (block := _block()) is not None:
        read_blocked(model, block)
    shared = held.hold(detach_weights(model, _SMALL))
    return replace(graph, model=model.SerializeToString(), optimized=True, shared=shared)


@contextmanager
def _scratch_file() -> Iterator[Path]:
    """A file to be written; one in memory where no folder can be, as in a container with a read-only root."""
    try:
        folder = TemporaryDirectory()
    except FileNotFoundError:
        if not hasattr(os, "memfd_create"):  # no Linux
            raise
        descriptor = os.memfd_create("optimized")
        try:
            yield Path(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    else:
        with folder as name:
            yield Path(name) / "optimized.onnx"


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
