"""Tensors that the inside of an If or a Loop alone reads count as read by that node, so that it is no constant."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from models.instrument.graph import Graph, value_inputs
from models.instrument.probes import find_probes
from tests import graphs
from tests.graphs import WIDTH


def _body(nodes: list[onnx.NodeProto], result: str, inputs: list[onnx.ValueInfoProto] | None = None) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs or [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)])


def _if(captured: str, result: str) -> onnx.NodeProto:
    """`result` is Relu(captured), in both branches of an If on a constant; in the second inside another If."""
    then = _body([helper.make_node("Relu", [captured], [f"{result}.then"])], f"{result}.then")
    inner = _body([helper.make_node("Relu", [captured], [f"{result}.inner"])], f"{result}.inner")
    nested = helper.make_node("If", ["always"], [f"{result}.else"], then_branch=inner, else_branch=inner)
    return helper.make_node("If", ["always"], [result], then_branch=then, else_branch=_body([nested], f"{result}.else"))


def _loop(captured: str, result: str) -> onnx.NodeProto:
    """`result` is Relu(captured), the carried value after two rounds of a Loop that does not read its inputs."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", [captured], [f"{result}.next"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"{result}.next", TensorProto.FLOAT, None),
        ],
    )
    return helper.make_node("Loop", ["rounds", "always", "start"], [result], body=body)


def _model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    constants = {
        "always": np.array(True),
        "rounds": np.array(2),
        "start": np.zeros((1, WIDTH), np.float32),
        "gamma": graphs.weights(WIDTH),
        "w": graphs.weights(WIDTH, WIDTH),
        "axes": np.array([-1]),
        "eps": np.array(0.125, np.float32),
    }
    shape: list[int | str] = ["batch", WIDTH]
    model = graphs.graph_of(nodes, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)}, constants, opset=18)
    feed = {"x": np.ones((2, WIDTH), np.float32)}
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)  # it is valid
    return model


def _written_out_norm() -> list[onnx.NodeProto]:
    lines = (
        ("ReduceMean", "x axes", "m"), ("Sub", "x m", "d"), ("Mul", "d d", "q"), ("ReduceMean", "q axes", "v"),
        ("Add", "v eps", "e"), ("Sqrt", "e", "s"), ("Div", "d s", "n"),
    )  # fmt: skip
    return [helper.make_node(operator, inputs.split(), [output]) for operator, inputs, output in lines]


@pytest.mark.parametrize("make", [_if, _loop])
def test_a_value_of_a_subgraph_is_no_beta(make: Callable[[str, str], onnx.NodeProto]) -> None:
    """What an If or a Loop makes of the normalized values, and adds to gamma times them, depends on the input."""
    model = _model(
        *_written_out_norm(),
        make("n", "inside"),
        helper.make_node("Mul", ["n", "gamma"], ["p"]),
        helper.make_node("Add", ["p", "inside"], ["y"]),
    )
    graph = Graph(model)
    assert not graph.is_constant("inside")
    assert graph.depends("inside", on="x")
    (probe,) = find_probes(model)
    assert (probe.tensors, probe.gamma, probe.beta) == ({"before": "x", "after": "n"}, None, None)


@pytest.mark.parametrize("make", [_if, _loop])
def test_a_subgraph_is_a_reader(make: Callable[[str, str], onnx.NodeProto]) -> None:
    """Normalized values that a subgraph reads too have two readers: the product with a constant is no gamma."""
    model = _model(
        *_written_out_norm(),
        helper.make_node("Mul", ["n", "gamma"], ["p"]),
        make("n", "inside"),
        helper.make_node("Sub", ["p", "inside"], ["y"]),
    )
    assert [reader.op_type for reader in Graph(model).readers("n")] == ["Mul", "If" if make is _if else "Loop"]
    (probe,) = find_probes(model)
    assert (probe.tensors["after"], probe.gamma) == ("n", None)


@pytest.mark.parametrize("make", [_if, _loop])
def test_a_branch_through_a_subgraph_reaches_its_fork(make: Callable[[str, str], onnx.NodeProto]) -> None:
    """x + MatMul(inside) is a residual add where x enters the branch inside an If or a Loop alone."""
    model = _model(
        make("x", "inside"), helper.make_node("MatMul", ["inside", "w"], ["f"]), helper.make_node("Add", ["x", "f"], ["y"])
    )
    (probe,) = find_probes(model)
    assert probe.tensors == {"identity": "x", "residual": "f", "sum": "y"}


def test_what_a_subgraph_makes_itself_is_not_captured() -> None:
    """Only tensors from outside are read: not its own inputs and results, nor those of the If inside."""
    assert value_inputs(_if("n", "inside")) == ["always", "always", "n", "n"]
    assert value_inputs(_loop("n", "inside")) == ["rounds", "always", "start", "n"]
