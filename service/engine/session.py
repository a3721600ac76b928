"""ONNX Runtime behind one small door: an artifact in, logits and tapped tensors out. Knows no HTTP and no statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from models.artifact import Artifact, ArtifactError
from models.instrument.taps import UnknownTensorError, add_taps

Provider = Literal["cpu", "cuda"]
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_SLOW_S = 0.005  # from here on the threads of a run gain more than handing work to them costs
Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class RunResult:
    """Logits float32 (N, classes) and the tapped tensors (N, ...) by name; none were tapped in a plain session."""

    logits: NDArray[np.float32]
    tensors: dict[str, NDArray[np.floating]]


class Session:
    """One loaded graph. `run` may be called from several threads at once."""

    def __init__(self, artifact: Artifact, taps: Sequence[str], threads: int, provider: Provider = "cpu") -> None:
        """Loads the model of an artifact with `taps` as further outputs.

        Raises:
            ArtifactError: ONNX Runtime cannot load the graph, a tap is not in it, or the provider is not installed.
        """
        if _PROVIDERS[provider] not in onnxruntime.get_available_providers():
            raise ArtifactError(f"ONNX Runtime has no provider {provider}; install onnxruntime-gpu, or set NORMSCOPE_PROVIDER=cpu")
        self._taps = list(dict.fromkeys(taps))
        self._output = artifact.manifest.outputs[0].name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # models take turns on the same cores: a pool that spins while idle would take them from the other
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            graph = add_taps(onnx.load(artifact.model_path), self._taps)
            providers = list(dict.fromkeys([_PROVIDERS[provider], _PROVIDERS["cpu"]]))  # the CPU for what the other cannot do
            self._session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=providers)
        except UnknownTensorError as error:
            raise ArtifactError(f"{artifact.model_path}: {error}") from error
        except Exception as error:  # ONNX Runtime's and protobuf's exceptions share no base
            raise ArtifactError(f"{artifact.model_path} cannot be loaded: {error}") from error

    def run(self, feed: Feed) -> RunResult:
        """Runs the graph once on arrays (N, ...)."""
        logits, *tensors = self._session.run([self._output, *self._taps], dict(feed))
        return RunResult(logits, dict(zip(self._taps, tensors, strict=True)))


class Sessions:
    """One graph, loaded for many runs at once on one thread each, and a second time for one run on all threads.

    On the same cores, runs beside each other finish more inputs in a second than one run on many threads: here 1.1 times as many
    photos and 1.6 times as many texts. A single run is slower so, unless it takes less time than handing its parts to threads does;
    so the second session exists only where a run takes long enough.
    """

    def __init__(self, artifact: Artifact, taps: Sequence[str], threads: int, provider: Provider, example: Feed) -> None:
        """Loads the sessions and runs each, so that the first request is as fast as the others.

        Raises:
            ArtifactError: the artifact cannot be loaded.
        """
        self.runs_at_once = threads if provider == "cpu" else 1
        self._narrow = self._wide = Session(artifact, taps, 1, provider)
        self._narrow.run(example)
        start = perf_counter()
        self._narrow.run(example)
        if self.runs_at_once > 1 and perf_counter() - start > _SLOW_S:
            self._wide = Session(artifact, taps, threads, provider)
            self._wide.run(example)

    def run(self, feed: Feed, *, alone: bool) -> RunResult:
        """Runs the graph once on arrays (N, ...), on all threads if nothing else runs. From several threads at once."""
        return (self._wide if alone else self._narrow).run(feed)
