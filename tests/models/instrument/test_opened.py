"""Opened graphs of one normalization or one add, run for real: what a run sets is what happens, and what it leaves out is not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.instrument.opened import OpenedGraph, open_graph
from models.instrument.probes import find_probes
from models.instrument.taps import UnknownTensorError
from models.statistics.normalized import normalize
from tests import graphs
from tests.normalizations import CASES, CONSTANTS, graph


def opened(model: onnx.ModelProto) -> OpenedGraph:
    """The model with all that `find_probes` finds opened."""
    return open_graph(model, {probe.layer: probe.tensors for probe in find_probes(model)})


def run(of: OpenedGraph, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """All outputs by name."""
    session = onnxruntime.InferenceSession(of.model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_gamma_and_beta_can_be_set(name: str) -> None:
    """Every kind, as an operator or written out: with other gamma and beta it is what torch makes of the same x."""
    case = CASES[name]
    of = opened(case.model)
    (place,) = of.places.values()
    feed = {"x": case.x}
    normalized = case.expected(torch.from_numpy(case.x)).numpy()
    gamma, beta = CONSTANTS[case.gamma], CONSTANTS[case.beta] if case.beta else None
    shape = (-1, 1, 1) if gamma.shape == (4,) else gamma.shape
    assert set(place.parameters) == ({"gamma", "beta"} if case.beta else {"gamma"})
    np.testing.assert_array_equal(place.parameters["gamma"].value, gamma)

    plain = normalized * gamma.reshape(shape) + (0 if beta is None else beta.reshape(shape))
    np.testing.assert_allclose(run(of, feed)["y"], plain, atol=1e-5)
    changed = normalized * (2 * gamma.reshape(shape) + 1) + (0 if beta is None else -beta.reshape(shape))
    feed |= {place.parameters["gamma"].input: 2 * gamma + 1}
    if beta is not None:
        feed |= {place.parameters["beta"].input: -beta}
    np.testing.assert_allclose(run(of, feed)["y"], changed, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_formula_gives_the_normalized_value(name: str) -> None:
    """The value before gamma and beta, computed from the before side by the formula, is torch's."""
    case = CASES[name]
    (place,) = opened(case.model).places.values()
    assert place.formula is not None
    expected = case.expected(torch.from_numpy(case.x)).numpy()
    np.testing.assert_allclose(normalize(case.x, place.formula), expected, atol=1e-5)


def test_a_layer_norm_over_several_axes_counted_from_the_front() -> None:
    """`axis` 1 of (N, L, D) takes the moments over (L, D), as torch does with that shape."""
    x = CASES["layer_norm"].x
    model = graph(["y = LayerNormalization x w"], x, axis=1)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(x.shape[1:], np.float32), "w"))
    (place,) = opened(model).places.values()
    assert place.formula is not None
    assert place.formula.axes == (1, 2)
    expected = torch.nn.functional.layer_norm(torch.from_numpy(x), x.shape[1:]).numpy()
    np.testing.assert_allclose(normalize(x, place.formula), expected, atol=1e-5)


def test_norms_that_share_a_constant_are_set_one_by_one() -> None:
    """Two layers with one gamma: changing that of the second leaves the first."""
    case = CASES["layer_norm"]
    of = opened(graph(["a = LayerNormalization x gamma_d beta_d", "y = LayerNormalization a gamma_d beta_d"], case.x))
    first, second = of.places.values()
    before = run(of, {"x": case.x})
    after = run(of, {"x": case.x, second.parameters["gamma"].input: np.zeros(6, np.float32)})
    np.testing.assert_array_equal(after["a"], before["a"])
    np.testing.assert_allclose(after["y"], np.broadcast_to(CONSTANTS["beta_d"], case.x.shape), atol=1e-6)
    assert first.parameters["gamma"].input != second.parameters["gamma"].input


def test_what_the_graph_computes_stays_closed() -> None:
    """A gamma that depends on the input cannot be set, and running moments that do give no formula."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "spatial"], ["m"], keepdims=0),
        helper.make_node("Squeeze", ["m", "first"], ["g"]),
        helper.make_node("BatchNormalization", ["x", "g", "beta_c", "g", "var_c"], ["y"]),
    ]
    constants = {**CONSTANTS, "spatial": np.array([2, 3]), "first": np.array([0])}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    used = {name for node in nodes for name in node.input}
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used]
    made = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    (place,) = opened(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)).places.values()
    assert place.formula is None
    assert set(place.parameters) == {"beta"}


def residual(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """y = layer_norm(x + x W), all of one element type."""
    rng = np.random.default_rng(1)
    numpy_kind = helper.tensor_dtype_to_np_dtype(kind)
    constants = {"w": rng.normal(size=(6, 6)), "g": rng.normal(size=6), "b": rng.normal(size=6)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["f"]),
        helper.make_node("Add", ["f", "x"], ["s"], name="add"),
        helper.make_node("LayerNormalization", ["s", "g", "b"], ["y"], name="norm"),
    ]
    made = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", kind, ["batch", 6])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value.astype(numpy_kind), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize(("identity", "scale"), [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.5, -2.0)])
def test_branches_can_be_scaled(kind: int, identity: float, scale: float) -> None:
    """x + F(x) becomes a x + b F(x), in the type of the activations; the sides that come out are those that are added."""
    of = opened(residual(kind))
    x = np.random.default_rng(2).normal(size=(3, 6)).astype(helper.tensor_dtype_to_np_dtype(kind))
    plain = run(of, {"x": x})
    place = of.places["add"]
    scales = {place.branches["identity"].input: [identity], place.branches["residual"].input: [scale]}
    changed = run(of, {"x": x, **{name: np.array(value, np.float32) for name, value in scales.items()}})
    tolerance = 1e-5 if kind == TensorProto.FLOAT else 1e-2
    np.testing.assert_allclose(changed[place.tensors["identity"]], identity * x, atol=tolerance)
    np.testing.assert_allclose(changed[place.tensors["residual"]], scale * plain[place.tensors["residual"]], atol=tolerance)
    np.testing.assert_allclose(
        changed[place.tensors["sum"]], identity * x + scale * plain[place.tensors["residual"]], atol=2 * tolerance
    )


def test_a_removed_branch_removes_its_nan() -> None:
    """A branch scaled by 0 is 0 also where it was infinite: x stays alone."""
    model = residual()
    of = opened(model)
    x = np.full((1, 6), 3e38, np.float32)
    assert not np.isfinite(run(of, {"x": x})["s"]).all()
    np.testing.assert_array_equal(run(of, {"x": x, of.places["add"].branches["residual"].input: np.zeros(1, np.float32)})["s"], x)


def test_float16_parameters_are_set_as_float32() -> None:
    """The inputs are float32 whatever the graph computes in."""
    of = opened(residual(TensorProto.FLOAT16))
    parameters = of.places["norm"].parameters
    assert {each.value.dtype for each in parameters.values()} == {np.dtype(np.float32)}
    feed: dict[str, NDArray[Any]] = {"x": np.ones((1, 6), np.float16), parameters["gamma"].input: np.zeros(6, np.float32)}
    np.testing.assert_allclose(run(of, feed)["y"][0].astype(np.float32), parameters["beta"].value, atol=1e-3)


def test_a_tensor_that_is_not_there_is_named() -> None:
    """Layers that do not belong to the graph are an error that says which tensor is missing."""
    with pytest.raises(UnknownTensorError, match="elsewhere"):
        open_graph(residual(), {"add": {"identity": "x", "residual": "elsewhere", "sum": "s"}})


def test_a_sum_of_two_in_half_precision() -> None:
    """h + h w, written as Sum and behind an operator that ONNX's shape inference does not know: a branch can be removed."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float16) for shape in ((1, 4, 6), (6, 6)))
    nodes = [
        helper.make_node("GroupNormalization", ["x", "g", "g"], ["h"], num_groups=2, name="norm"),
        helper.make_node("MatMul", ["h", "w"], ["f"]),
        helper.make_node("Sum", ["h", "f"], ["y"], name="sum"),
    ]
    half: dict[str, tuple[int, graphs.Shape]] = {name: (TensorProto.FLOAT16, [1, 4, 6]) for name in "xy"}
    model = graphs.graph_of(nodes, {"x": half["x"]}, {"y": half["y"]}, {"w": w, "g": np.ones(4, np.float16)}, opset=21)
    of = opened(model)
    whole, without = (
        run(of, {"x": x, **feed}) for feed in ({}, {of.places["sum"].branches["residual"].input: np.zeros(1, np.float32)})
    )
    np.testing.assert_allclose(whole["y"], whole["h"] + whole["h"] @ w, atol=1e-2)
    np.testing.assert_array_equal(without["y"], without["h"])
