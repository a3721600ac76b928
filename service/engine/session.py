"""ONNX Runtime behind one small door: an artifact in, logits and tapped tensors out. Knows no HTTP and no statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from models.artifact import Artifact, ArtifactError
from models.instrument.taps import UnknownTensorError, add_taps

Provider = Literal["cpu", "cuda"]
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class RunResult:
    """Logits float32 (N, classes) and the tapped tensors (N, ...) by name; none were tapped in a plain session."""

    logits: NDArray[np.float32]
    tensors: dict[str, NDArray[np.floating]]


class Session:
    """One loaded graph. `run` may be called from one thread at a time without waiting, from several with."""

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
