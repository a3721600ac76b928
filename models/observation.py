"""A session in which layers are seen while an artifact is measured: inputs in, scores and statistics of the layers out. No torch.

Activations leave the graph and are reduced by numpy; the service, which must be fast, reduces inside the graph instead.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import onnx
import onnxruntime
from numpy.typing import NDArray

from models.artifact import Artifact
from models.instrument.taps import add_taps, widen
from models.statistics.layers import BatchReducer, BatchStatistics, RunOutputs, SideLayout


class ObservedSession:
    """A loaded graph whose tensors on the sides of the layers are outputs too."""

    def __init__(self, artifact: Artifact, model: onnx.ModelProto, layout: SideLayout, further: Sequence[str] = ()) -> None:
        """
        Args:
            artifact: whose inputs and outputs the graph has, and whose folder holds its external weights.
            model: the graph as `read_graph` reads it, which may have been given further inputs; it is changed.
            layout: of the layers that are seen.
            further: tensors of the graph that are handed out as they are.
        """
        self._inputs = [spec.name for spec in artifact.manifest.inputs]
        self._further = list(further)
        self._scores = artifact.manifest.outputs[artifact.manifest.scores_output or 0].name
        self._taps = list(dict.fromkeys(each.tensor for each in layout.reductions))
        widened = widen(model, self._taps)
        self._tapped = [widened.get(tap, tap) for tap in self._taps]
        self._reducer = BatchReducer(layout)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of initializers that are inputs too
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(artifact.folder))
        graph = add_taps(model, [*self._tapped, *self._further]).SerializeToString()
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def feed(self, inputs: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The inputs of a batch by their names."""
        return dict(zip(self._inputs, inputs, strict=True))

    def scores(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The output that holds the scores of the classes."""
        return self._session.run([self._scores], dict(feed))[0]  # type: ignore[no-any-return]  # onnxruntime has no types

    def observe(self, feed: Mapping[str, NDArray[Any]], workers: Executor) -> tuple[NDArray[Any], BatchStatistics]:
        """The scores and the statistics of all layers; `workers` are threads that reduce."""
        (scores, *_), observed = self.observe_all(feed, workers)
        return scores, observed

    def observe_all(self, feed: Mapping[str, NDArray[Any]], workers: Executor) -> tuple[list[NDArray[Any]], BatchStatistics]:
        """The scores and the further tensors, and the statistics of all layers."""
        tensors = self._session.run([self._scores, *self._further, *self._tapped], dict(feed))
        asked = 1 + len(self._further)
        outputs = RunOutputs(dict(zip(self._taps, tensors[asked:], strict=True)))
        return tensors[:asked], self._reducer.reduce(outputs, feed, workers)
