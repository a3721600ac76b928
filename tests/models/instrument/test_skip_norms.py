"""ONNX Runtime's fused Add & Norm operators: one tiny graph for each rule, and their numbers when it runs."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.instrument.probes import Probe, find_probes
from models.instrument.skip_norms import expose_sums
from models.instrument.taps import add_taps
from tests.graphs import graph_of, weights

WIDTH = 8
_KINDS = {"SkipLayerNormalization": "layer_norm", "SkipSimplifiedLayerNormalization": "rms_norm"}


def skip_norm(operator: str, *, bias: bool, order: str = "fx", total: str = "") -> onnx.ModelProto:
    """y = norm(x + x W [+ bias]), in one operator."""
    layer = operator == "SkipLayerNormalization"
    sides = {"fx": ["f", "x"], "xf": ["x", "f"]}[order]
    parameters = ["gamma", *(["beta"] if layer else []), *(["bias"] if bias else [])]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["f"]),
        helper.make_node(
            operator,
            [*sides, *parameters],
            ["y", "", "", total] if total else ["y"],
            name="block.norm",
            domain="com.microsoft",
            epsilon=1e-3,
        ),
        helper.make_node("LayerNormalization", ["y", "gamma", "beta"], ["z"], name="last"),
    ]
    constants = {"w": weights(WIDTH, WIDTH)} | {name: weights(WIDTH, seed=i) for i, name in enumerate(("gamma", "beta", "bias"), 1)}
    shape: list[int | str] = ["batch", "length", WIDTH]
    return graph_of(nodes, {"x": (TensorProto.FLOAT, shape)}, {"z": (TensorProto.FLOAT, None)}, constants)


def run(model: onnx.ModelProto, probes: list[Probe], x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """All tensors that the probes name."""
    tapped = add_taps(model, [tensor for probe in probes for tensor in probe.tensors.values()])
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


@pytest.mark.parametrize("operator", list(_KINDS))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", ["fx", "xf"])
@pytest.mark.parametrize("total", ["", "told"])
def test_a_skip_operator_is_an_add_and_a_norm(operator: str, bias: bool, order: str, total: str) -> None:
    """Rules 1 and 2: both probes with their tensors, whose numbers are those of numpy; the answer of the model stays."""
    model = skip_norm(operator, bias=bias, order=order, total=total)
    x = np.random.default_rng(4).standard_normal((2, 3, WIDTH)).astype(np.float32)
    plain = run(model, [], x)["z"]
    assert expose_sums(model) == (bias or not total)
    assert not expose_sums(model)
    add, norm, last = probes = find_probes(model)
    assert [probe.layer for probe in probes[:2]] == ["block.norm.add", "block.norm"]
    assert [probe.kind for probe in probes[:2]] == ["residual_add", _KINDS[operator]]
    assert norm.epsilon == pytest.approx(1e-3)
    assert (add.channel_axis, norm.channel_axis, norm.beta is None) == (2, 2, "Simplified" in operator)
    assert [probe.shape for probe in (add, norm, last)] == [["batch", "length", WIDTH]] * 3
    values = run(model, probes, x)
    np.testing.assert_allclose(values["z"], plain, atol=1e-5)
    np.testing.assert_array_equal(values[add.tensors["identity"]], x)
    residual = x @ weights(WIDTH, WIDTH) + (weights(WIDTH, seed=3) if bias else 0)
    np.testing.assert_allclose(values[add.tensors["residual"]], residual, atol=1e-5)
    np.testing.assert_allclose(values[add.tensors["sum"]], x + residual, atol=1e-5)
    assert norm.tensors["before"] == add.tensors["sum"] == (total or "y.sum")
    a = x + residual
    a = a if "Simplified" in operator else a - a.mean(-1, keepdims=True)
    expected = a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-3) * weights(WIDTH, seed=1)
    np.testing.assert_allclose(values["y"], expected + (0 if "Simplified" in operator else weights(WIDTH, seed=2)), atol=1e-4)


def test_the_probes_of_a_graph_that_was_not_changed() -> None:
    """Whoever only inspects a model sees the same probes, and the model stays as it is."""
    model = skip_norm("SkipLayerNormalization", bias=True)
    before = model.SerializeToString()
    assert [probe.kind for probe in find_probes(model)] == ["residual_add", "layer_norm", "layer_norm"]
    assert model.SerializeToString() == before


def test_simplified_layer_normalization_is_an_rms_norm() -> None:
    """Rule 1 of norms: the operator that ONNX Runtime's tools write, in whichever domain; shapes go on behind it."""
    nodes = [
        helper.make_node("SimplifiedLayerNormalization", ["x", "gamma"], ["n"], name="norm", axis=-1, epsilon=0.25),
        helper.make_node("RMSNormalization", ["n", "gamma"], ["y"], name="last", axis=-1),
    ]
    shape: list[int | str] = ["batch", WIDTH]
    model = graph_of(nodes, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, None)}, {"gamma": weights(WIDTH)}, 23)
    norm, last = find_probes(model)
    assert (norm.kind, norm.tensors, norm.epsilon, norm.beta) == ("rms_norm", {"before": "x", "after": "n"}, 0.25, None)
    assert norm.gamma is not None
    np.testing.assert_array_equal(norm.gamma, weights(WIDTH))
    assert last.shape == ["batch", WIDTH]
