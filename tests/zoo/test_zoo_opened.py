"""Models from outside, opened: the same output, every formula known, every branch removable, every normalization exchangeable."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from numpy.typing import NDArray

from models.instrument.opened import OpenedGraph, Place, open_graph
from models.instrument.probes import Probe, find_probes
from models.instrument.renormalize import Renormalization
from models.statistics.normalized import normalize
from tests.zoo.exports import Exporter, export
from tests.zoo.families import FAMILIES, build, example

_CASES = [
    *(pytest.param(name, "dynamo", 20, id=f"{name}-dynamo") for name in FAMILIES),
    *(pytest.param(name, "torchscript", 17, id=f"{name}-torchscript", marks=pytest.mark.zoo) for name in FAMILIES),
]


def _run(of: OpenedGraph, feed: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(of.model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


def _close(actual: NDArray[np.floating], expected: NDArray[np.floating], where: str) -> None:
    s = np.sqrt(np.square(expected.astype(np.float64)).mean())
    np.testing.assert_allclose(actual, expected, atol=1e-4 * max(s, np.abs(expected).max()), err_msg=where)


def _affine(normalized: NDArray[np.floating], place: Place, probe: Probe) -> NDArray[np.floating]:
    for name, parameter in place.parameters.items():
        is_last = probe.channel_axis % normalized.ndim == normalized.ndim - 1
        value = (
            parameter.value if is_last or parameter.value.ndim > 1 else parameter.value.reshape(-1, *[1] * (normalized.ndim - 2))
        )
        normalized = normalized * value if name == "gamma" else normalized + value
    return normalized


@pytest.mark.parametrize(("name", "exporter", "opset"), _CASES)
def test_an_opened_family(name: str, exporter: Exporter, opset: int, tmp_path: Path) -> None:
    """`after` is the formula's value with gamma and beta; without a branch the sum is the other; without a formula it is affine."""
    model = export(build(name), name, exporter, opset, tmp_path / "model.onnx")
    probes = {probe.layer: probe for probe in find_probes(model)}
    layers = {layer: probe.tensors for layer, probe in probes.items()}
    feed = {key: tensor.numpy() for key, tensor in zip(FAMILIES[name].axes, example(name, batch=1, length=9), strict=True)}
    opened = open_graph(model, layers)
    values = _run(opened, feed)
    _close(values["output"], onnxruntime.InferenceSession(model.SerializeToString()).run(["output"], feed)[0], "output")
    _assert_places(opened, probes, values)
    _assert_changes(model, opened, probes, feed)


def _assert_places(opened: OpenedGraph, probes: dict[str, Probe], values: dict[str, NDArray[np.float32]]) -> None:
    for layer, place in opened.places.items():
        if probes[layer].kind == "residual_add":
            assert set(place.branches) == {"identity", "residual"}
            continue
        assert place.formula is not None
        assert "gamma" in place.parameters
        before, after = (values[place.tensors[side]] for side in ("before", "after"))
        _close(after, _affine(normalize(before, place.formula), place, probes[layer]), layer)


def _assert_changes(
    model: onnx.ModelProto, opened: OpenedGraph, probes: dict[str, Probe], feed: dict[str, NDArray[np.generic]]
) -> None:
    norms = {layer: probe for layer, probe in probes.items() if probe.kind != "residual_add"}
    none = {layer: Renormalization(None, probe.channel_axis) for layer, probe in norms.items()}
    changed = open_graph(model, {layer: probe.tensors for layer, probe in probes.items()}, none)
    removed = {place.branches["residual"].input: np.zeros(1, np.float32) for place in opened.places.values() if place.branches}
    values = _run(changed, {**feed, **removed})
    for layer, place in changed.places.items():
        if place.branches:
            np.testing.assert_array_equal(values[place.tensors["sum"]], values[place.tensors["identity"]], err_msg=layer)
        else:
            expected = _affine(values[place.tensors["before"]], place, probes[layer])
            finite = np.isfinite(expected)  # without normalization activations may grow beyond all bounds
            np.testing.assert_allclose(values[place.tensors["after"]][finite], expected[finite], rtol=1e-4, err_msg=layer)
