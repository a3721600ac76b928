"""Graphs too large for one protobuf message: their weights stay in files, and the statistics are the same."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from models.artifact import Artifact, load_artifact
from models.graph_import import ImportOptions, import_graph
from models.statistics.layers import BatchReducer, RunOutputs, SideLayout, summary
from service.engine import graph as engine_graph
from service.engine.graph import prepare
from service.engine.session import Session
from tests.graphs import WIDTH, graph_of, weights

_ROWS = 70_000  # of the embeddings: above what is read with the graph


def large(folder: Path) -> Artifact:
    """LayerNorm of embeddings, whose 2 MB lie in a file of their own."""
    nodes = [
        onnx.helper.make_node("Gather", ["table", "ids"], ["e"]),
        onnx.helper.make_node("LayerNormalization", ["e", "gamma"], ["y"], name="norm"),
    ]
    model = graph_of(
        nodes,
        {"ids": (onnx.TensorProto.INT64, ["batch", "length"])},
        {"y": (onnx.TensorProto.FLOAT, ["batch", "length", WIDTH])},
        {"table": weights(_ROWS, WIDTH), "gamma": weights(WIDTH)},
    )
    onnx.save(model, folder / "large.onnx", save_as_external_data=True, location="large.bin", size_threshold=0)
    return import_graph(folder / "large.onnx", folder / "large" / "1", ImportOptions())


def test_weights_that_stay_in_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit the changed graph holds none of the large weights, and gives the same outputs and statistics."""
    artifact = load_artifact(large(tmp_path).folder)
    layout = SideLayout(tuple(artifact.manifest.layers))
    feed = {"ids": np.arange(0, _ROWS, 7000).reshape(2, 5)}
    described, outputs = [], []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(engine_graph, "_MOST_BYTES", limit)
        prepared = prepare(artifact, "cpu", layout.reductions, layout.pairs)
        assert isinstance(prepared.model, bytes)
        assert (len(prepared.model) > _ROWS * WIDTH * 4) == (limit > 0)
        assert prepared.weights == (None if limit else artifact.folder)
        result = Session(prepared, 1).run(feed)
        reduced = BatchReducer(layout, prepared.observers).reduce(RunOutputs(result.tensors, result.summary), feed)
        described.append([summary(reduced.pooled, (row, side)) for row in range(2) for side in range(2)])
        outputs.append(result.outputs[0])
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert described[0] == described[1]
    assert described[0][0]["count"] == 5 * WIDTH
