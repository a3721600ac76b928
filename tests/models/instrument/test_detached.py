"""Graphs without their large weights: what is left is small, and computes the same once they are given back."""

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.instrument.detached import detach_weights


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("raw", [True, False])
def test_large_weights_come_out_and_go_back(kind: type[np.floating], raw: bool) -> None:
    """However they are stored; small ones and indices stay. With the values as external initializers the result is the same."""
    rng = np.random.default_rng(0)
    large: NDArray[np.floating] = rng.normal(size=(300, 300)).astype(kind)
    stored = numpy_helper.from_array(large, "large")
    if not raw:
        stored = helper.make_tensor("large", stored.data_type, large.shape, large.ravel())
    small = numpy_helper.from_array(rng.normal(size=300).astype(kind), "small")
    rows = numpy_helper.from_array(np.arange(70_000) % 300, "rows")
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["p"]),
        helper.make_node("Add", ["p", "small"], ["s"]),
        helper.make_node("Gather", ["s", "rows"], ["y"], axis=1),
    ]
    element = TensorProto.FLOAT if kind is np.float32 else TensorProto.FLOAT16
    inputs = [helper.make_tensor_value_info("x", element, [1, 300])]
    outputs = [helper.make_tensor_value_info("y", element, [1, 70_000])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [stored, small, rows])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    feed = {"x": rng.normal(size=(1, 300)).astype(kind)}
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)

    weights = detach_weights(model)
    assert set(weights) == {"large"}
    np.testing.assert_array_equal(weights["large"], large)
    without = onnx.ModelProto.FromString(model.SerializeToString())
    without.graph.initializer.remove(next(each for each in without.graph.initializer if each.name == "rows"))
    assert without.ByteSize() < 10_000
    options = onnxruntime.SessionOptions()
    options.add_external_initializers(["large"], [onnxruntime.OrtValue.ortvalue_from_numpy(weights["large"])])
    (actual,) = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feed)
    np.testing.assert_array_equal(actual, expected)
