"""A model of more than 2 GB, which protobuf cannot hold: inspected, imported and run with its weights in a file of their own."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.__main__ import main
from models.artifact import load_artifact
from models.statistics.layers import SideLayout
from service.engine.graph import prepare
from service.engine.session import Session
from tests import graphs
from tests.graphs import WIDTH

_ROWS = (1 << 31) // (4 * WIDTH) + 1
pytestmark = pytest.mark.zoo


def _large(folder: Path) -> Path:
    """LayerNorm(e + e W) of rows e of a table of more than 2 GiB, a file with a hole: only its first rows are written."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["f"]),
        helper.make_node("Add", ["f", "e"], ["s"], name="add"),
        helper.make_node("LayerNormalization", ["s", "gamma"], ["y"], name="norm"),
    ]
    model = graphs.graph_of(
        nodes,
        {"ids": (TensorProto.INT64, ["batch", "length"])},
        {"y": (TensorProto.FLOAT, ["batch", "length", WIDTH])},
        {"w": graphs.weights(WIDTH, WIDTH), "gamma": graphs.weights(WIDTH)},
    )
    table = onnx.TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[_ROWS, WIDTH], data_location=TensorProto.EXTERNAL)
    table.external_data.add(key="location", value="table.bin")
    model.graph.initializer.append(table)
    with (folder / "table.bin").open("wb") as file:
        file.write(graphs.weights(100, WIDTH).tobytes())
        file.truncate(_ROWS * WIDTH * 4)
    return graphs.save(model, folder / "large.onnx")


def test_more_than_two_gigabytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`inspect` and `import` take it, and a session with statistics computes what numpy does."""
    path = _large(tmp_path)
    main(["inspect", str(path)])
    assert "layer_norm" in capsys.readouterr().out
    main(["import", str(path), "--name", "large", "--output", str(tmp_path / "repository")])
    artifact = load_artifact(tmp_path / "repository" / "large" / "1")
    assert (artifact.folder / "table.bin").stat().st_size > 1 << 31
    layout = SideLayout(tuple(artifact.manifest.layers))
    ids = np.array([[0, 99, 5], [1, 2, 3]])
    result = Session(prepare(artifact, "cpu", layout.reductions, layout.pairs), 1).run({"ids": ids})
    e = graphs.weights(100, WIDTH)[ids]
    s = e + e @ graphs.weights(WIDTH, WIDTH)
    centred = s - s.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * graphs.weights(WIDTH)
    np.testing.assert_allclose(result.outputs[0], expected, atol=1e-5)
    (artifact.folder / "table.bin").unlink()  # pytest would keep it
