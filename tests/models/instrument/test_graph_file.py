"""ONNX files are read for their probes: small constants with them, large weights left in their files."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.__main__ import main
from models.graph_import import ImportOptions, import_graph
from models.instrument.graph_file import GraphFileError, read_graph, remarks
from models.instrument.probes import find_probes


def save(folder: Path, *, external: bool, width: int = 300) -> Path:
    """LayerNorm of a product with a matrix of width x width."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["f"]),
        helper.make_node("LayerNormalization", ["f", "gamma", "beta"], ["y"], name="norm", axis=-1),
    ]
    shape: list[str | int | None] = ["batch", width]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    constants = {"weight": np.ones((width, width)), "gamma": np.full(width, 0.5), "beta": np.linspace(-1, 1, width)}
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], tensors), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


@pytest.mark.parametrize("external", [False, True])
def test_probes_are_the_same_wherever_the_weights_lie(external: bool, tmp_path: Path) -> None:
    """gamma and beta are read from external data too; the large weight is not."""
    model = read_graph(save(tmp_path, external=external))
    (probe,) = find_probes(model)
    assert probe.gamma is not None
    assert probe.beta is not None
    assert (probe.gamma == 0.5).all()
    np.testing.assert_allclose(probe.beta, np.linspace(-1, 1, 300), atol=1e-7)
    left = [tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    assert left == (["weight"] if external else [])


def test_missing_external_data_is_told(tmp_path: Path) -> None:
    """The message names the tensor and the file."""
    path = save(tmp_path, external=True)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(GraphFileError, match=r"gamma.*model\.onnx"):
        read_graph(path)


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\xff" * 100])
def test_what_is_no_graph_is_told(content: bytes, tmp_path: Path) -> None:
    """An empty, a wrong and a broken file are refused with the remedy."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphFileError, match="the file that an exporter wrote"):
        read_graph(path)


def test_remarks() -> None:
    """A graph without normalization, and one with subgraphs, are said to be so."""
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [helper.make_tensor_value_info("z", 1, None)])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert [each.split(":")[0] for each in remarks(model, 0)] == [
        "no normalization is in the graph",
        "1 of the nodes are If, Loop or Scan",
    ]
    with_function = helper.make_model(helper.make_graph([], "g", [], []), functions=[functions(17).functions[0]])
    assert remarks(with_function, norms=1) == [
        "functions of another opset than the model's are left alone: Block; export the model with one opset"
    ]
    assert not remarks(helper.make_model(helper.make_graph([], "g", [], [])), norms=1)


def test_inspect_tells_what_the_manifest_of_an_artifact_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What import found out, here that there is no normalization, is said again, on stderr so that --json stays JSON."""
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "model.onnx")
    import_graph(tmp_path / "model.onnx", tmp_path / "bare" / "1", ImportOptions())
    main(["inspect", str(tmp_path / "bare" / "1"), "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == []
    assert printed.err.startswith("note: no normalization is in the graph")


def functions(opset: int = 18) -> onnx.ModelProto:
    """Two blocks y = LayerNorm(x + x W), each a call of one function of the model, whose opset is 18."""
    inner = helper.make_function(
        "own", "Norm", ["s", "g"], ["n"], [helper.make_node("LayerNormalization", ["s", "g"], ["n"], name="norm")],
        [helper.make_opsetid("", opset)],
    )  # fmt: skip
    block = helper.make_function(
        "own", "Block", ["x", "w", "g"], ["y"],
        [
            helper.make_node("MatMul", ["x", "w"], ["f"]),
            helper.make_node("Add", ["f", "x"], ["s"], name="add"),
            helper.make_node("Norm", ["s", "g"], ["y"], domain="own"),
        ],
        [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)],
    )  # fmt: skip
    calls = [helper.make_node("Block", [name, "w", "g"], [to], domain="own") for name, to in (("x", "h"), ("h", "y"))]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in ("x", "y")]
    constants = {"w": np.eye(8), "g": np.linspace(0.5, 1, 8)}
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    return helper.make_model(
        helper.make_graph(calls, "g", values[:1], values[1:], tensors), functions=[block, inner], ir_version=9,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)],
    )  # fmt: skip


def test_functions_of_the_model_are_looked_into(tmp_path: Path) -> None:
    """Norms and adds inside functions, also inside one that another calls, are found at each call under a name of its own."""
    onnx.save(functions(), tmp_path / "model.onnx")
    model = read_graph(tmp_path / "model.onnx")
    probes = find_probes(model)
    assert [probe.kind for probe in probes] == ["residual_add", "layer_norm"] * 2
    assert len({probe.layer for probe in probes}) == 4
    assert all(probe.gamma is not None for probe in probes if probe.kind == "layer_norm")
    assert remarks(model, norms=2) == []


def test_functions_of_another_opset_are_left_alone_and_said_so(tmp_path: Path) -> None:
    """Their nodes would mean something else in the graph: no probe, and a remark with the remedy."""
    onnx.save(functions(17), tmp_path / "model.onnx")
    model = read_graph(tmp_path / "model.onnx")
    assert find_probes(model) == []
    assert "functions of another opset" in remarks(model, norms=0)[-1]


def test_inspect_takes_a_graph_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`inspect model.onnx` prints the probes of a file that is no artifact."""
    main(["inspect", str(save(tmp_path, external=True))])
    printed = capsys.readouterr().out
    assert "norm " in printed
    assert "layer_norm" in printed
    assert "0.5000" in printed
    main(["inspect", str(tmp_path / "model.onnx"), "--json"])
    assert '"kind": "layer_norm"' in capsys.readouterr().out
