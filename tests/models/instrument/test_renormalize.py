"""Another formula in the place of every kind of normalization, run for real: what torch's function makes of the same tensor."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from models.instrument.formulas import Formula
from models.instrument.opened import OpenedGraph, open_graph
from models.instrument.probes import find_probes
from models.instrument.renormalize import Renormalization, RenormalizationError
from tests.normalizations import CASES, CONSTANTS, EPSILON, Case, graph

_MEAN, _VAR = (np.random.default_rng(seed).uniform(0.5, 2, 6) for seed in (1, 2))


def _along_channels(x: Tensor, axis: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of torch that takes channels along axis 1."""
    return function(x.movedim(axis, 1)).movedim(1, axis)


def _torch(wanted: str, x: Tensor, axis: int) -> Tensor:
    """The value before gamma and beta: over channels along `axis`."""
    channels = x.shape[axis]
    if wanted == "none":
        return x
    if wanted == "batch":
        mean, var = (torch.from_numpy(values[:channels]).float() for values in (_MEAN, _VAR))
        return _along_channels(x, axis, lambda each: F.batch_norm(each, mean, var, eps=EPSILON))
    if wanted == "group":
        return _along_channels(x, axis, lambda each: F.group_norm(each, 2, eps=EPSILON))
    return F.layer_norm(x, x.shape[-1:] if axis == x.ndim - 1 else x.shape[1:], eps=EPSILON)


def _formula(wanted: str, axis: int, rank: int, channels: int) -> Formula | None:
    if wanted == "none":
        return None
    if wanted == "batch":
        return Formula(EPSILON, mean=_MEAN[:channels], var=_VAR[:channels])
    if wanted == "group":
        return Formula(EPSILON, groups=2)
    return Formula(EPSILON, axes=(-1,)) if axis == rank - 1 else Formula(EPSILON, groups=1)


def _renormalized(case: Case, wanted: str, opset: int = 21) -> tuple[OpenedGraph, int]:
    model = case.model
    model.opset_import[0].version = opset
    (probe,) = find_probes(model)
    axis = probe.channel_axis
    formula = _formula(wanted, axis, case.x.ndim, case.x.shape[axis])
    return open_graph(model, {probe.layer: probe.tensors}, {probe.layer: Renormalization(formula, axis)}), axis


def _run(of: OpenedGraph, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(of.model.SerializeToString())
    return np.asarray(session.run(["y"], feed)[0])


@pytest.mark.parametrize("wanted", ["batch", "layer", "group", "none"])
@pytest.mark.parametrize("name", CASES)
def test_every_formula_in_the_place_of_every_kind(name: str, wanted: str) -> None:
    """Within 1e-4 of torch's function on the same tensor, with the layer's own gamma and beta, as given and as a run sets them."""
    case = CASES[name]
    of, axis = _renormalized(case, wanted)
    normalized = _torch(wanted, torch.from_numpy(case.x), axis).numpy()
    gamma, beta = CONSTANTS[case.gamma], CONSTANTS[case.beta] if case.beta else np.zeros(1, np.float32)
    shape = (-1, *[1] * (case.x.ndim - 1 - axis))
    expected = normalized * gamma.reshape(shape) + beta.reshape(shape)
    np.testing.assert_allclose(_run(of, {"x": case.x}), expected, atol=1e-4)
    (place,) = of.places.values()
    set_to_2 = {place.parameters["gamma"].input: np.full(gamma.shape, 2, np.float32)}
    np.testing.assert_allclose(_run(of, {"x": case.x, **set_to_2}), normalized * 2 + beta.reshape(shape), atol=1e-4)


@pytest.mark.parametrize("opset", [11, 13, 17, 18])
def test_every_opset(opset: int) -> None:
    """Reductions take their axes as an attribute up to opset 17 and as an input since; both compute the same."""
    case = CASES["batch_norm"]
    of, axis = _renormalized(case, "group", opset)
    gamma, beta = (CONSTANTS[name].reshape(-1, 1, 1) for name in ("gamma_c", "beta_c"))
    expected = _torch("group", torch.from_numpy(case.x), axis).numpy() * gamma + beta
    np.testing.assert_allclose(_run(of, {"x": case.x}), expected, atol=1e-4)


@pytest.mark.parametrize("wanted", ["batch", "layer", "group", "none"])
def test_gamma_of_a_group(wanted: str) -> None:
    """Before opset 21 gamma and beta of GroupNormalization have one number for each of its groups, which its channels share."""
    x = CASES["group_norm"].x
    model = graph(["y = GroupNormalization x gamma_g beta_g"], x, epsilon=EPSILON, num_groups=2)
    model.opset_import[0].version = 18
    gamma, beta = np.array([0.5, -2], np.float32), np.array([1, 3], np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(gamma, "gamma_g"), numpy_helper.from_array(beta, "beta_g")])
    (probe,) = find_probes(model)
    formula = _formula(wanted, 1, x.ndim, x.shape[1])
    of = open_graph(model, {probe.layer: probe.tensors}, {probe.layer: Renormalization(formula, 1)})
    (place,) = of.places.values()
    normalized = _torch(wanted, torch.from_numpy(x), 1).numpy()
    for feed, factor in (({}, gamma), ({place.parameters["gamma"].input: 3 * gamma}, 3 * gamma)):
        expected = normalized * factor.repeat(2).reshape(-1, 1, 1) + beta.repeat(2).reshape(-1, 1, 1)
        np.testing.assert_allclose(_run(of, {"x": x, **feed}), expected, atol=1e-4)


def test_gamma_of_groups_of_unknown_channels_is_an_error() -> None:
    """How many channels share a number must be known before the graph is built."""
    x = CASES["group_norm"].x
    model = graph(["y = GroupNormalization x ones_2 zeros_2"], x, epsilon=EPSILON, num_groups=2)
    model.opset_import[0].version = 18
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "channels"
    (probe,) = find_probes(model)
    with pytest.raises(RenormalizationError, match="groups of channels, whose number is not known"):
        open_graph(model, {probe.layer: probe.tensors}, {probe.layer: Renormalization(None, 1)})


def test_large_means_keep_their_digits() -> None:
    """Mean 1e4 and deviation 1: the moments of the new formula are taken in two passes."""
    x = np.random.default_rng(0).normal(1e4, 1, (1, 4, 40, 40)).astype(np.float32)
    of, _ = _renormalized(Case(**{**CASES["batch_norm"].__dict__, "x": x}), "group")
    gamma, beta = (CONSTANTS[name].reshape(-1, 1, 1) for name in ("gamma_c", "beta_c"))
    expected = F.group_norm(torch.from_numpy(x.astype(np.float64)), 2, eps=EPSILON).numpy() * gamma + beta
    np.testing.assert_allclose(_run(of, {"x": x}), expected, atol=5e-3)  # float32 at 1e4 has steps of 1e-3


def test_float16_activations_are_normalized_in_float32() -> None:
    """Elements whose squares overflow float16 have finite moments."""
    x = np.random.default_rng(0).normal(0, 1000, (1, 4, 6)).astype(np.float16)
    node = helper.make_node("LayerNormalization", ["x", "g", "b"], ["y"], name="norm")
    constants = [numpy_helper.from_array(np.full(6, value, np.float16), name) for name, value in (("g", 2), ("b", 1))]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 4, 6]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "g", values[:1], values[1:], constants),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    of = open_graph(
        model, {"norm": {"before": "x", "after": "y"}}, {"norm": Renormalization(Formula(EPSILON, groups=3), channel_axis=2)}
    )
    expected = _along_channels(torch.from_numpy(x).float(), 2, lambda each: F.group_norm(each, 3, eps=EPSILON)).numpy() * 2 + 1
    np.testing.assert_allclose(_run(of, {"x": x}).astype(np.float32), expected, atol=5e-3)


def test_readers_of_the_old_output_read_the_new_one() -> None:
    """What comes after the normalization sees the new formula, what comes before it does not."""
    case = CASES["layer_norm"]
    model = graph(["r = Relu x", "n = LayerNormalization r gamma_d beta_d", "y = Relu n"], case.x)
    (probe,) = find_probes(model)
    of = open_graph(model, {probe.layer: probe.tensors}, {probe.layer: Renormalization(None, 2)})
    expected = np.maximum(np.maximum(case.x, 0) * CONSTANTS["gamma_d"] + CONSTANTS["beta_d"], 0)
    np.testing.assert_allclose(_run(of, {"x": case.x}), expected, atol=1e-6)


def test_what_the_graph_does_not_tell_is_an_error() -> None:
    """A gamma that the graph computes cannot be kept: an error that names the layer."""
    case = CASES["layer_norm"]
    model = graph(["g = ReduceMean x axes", "s = Squeeze g axes", "y = LayerNormalization x s beta_d"], case.x)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1]), "axes"))
    (probe,) = find_probes(model)
    with pytest.raises(RenormalizationError, match=f"{probe.layer}: the graph computes its gamma"):
        open_graph(model, {probe.layer: probe.tensors}, {probe.layer: Renormalization(None, 2)})


def test_a_shape_that_the_graph_does_not_tell() -> None:
    """Behind an operator of ONNX Runtime shape inference knows nothing; what a run has shown is enough."""
    case = CASES["layer_norm"]
    node = helper.make_node("FusedMatMul", ["x", "w"], ["r"], domain="com.microsoft")
    model = graph(["y = LayerNormalization r gamma_d beta_d"], case.x)
    model.graph.node.insert(0, node)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    channels = case.x.shape[-1]
    model.graph.initializer.append(numpy_helper.from_array(np.eye(channels, dtype=np.float32), "w"))
    (probe,) = find_probes(model)
    assert probe.shape is None
    tensors = {probe.layer: probe.tensors}
    with pytest.raises(RenormalizationError, match="shape of its input is not known"):
        open_graph(model, tensors, {probe.layer: Renormalization(None, 2)})
    of = open_graph(model, tensors, {probe.layer: Renormalization(Formula(EPSILON, groups=2), 2, case.x.shape)})
    expected = _torch("group", torch.from_numpy(case.x), 2).numpy() * CONSTANTS["gamma_d"] + CONSTANTS["beta_d"]
    np.testing.assert_allclose(_run(of, {"x": case.x}), expected, atol=1e-4)
