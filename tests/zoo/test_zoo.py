"""Models from outside: whatever exporter wrote them, their norms and residual adds are found, and hold what torch computes.

`make test` takes the default exporter once for each family; `make test-zoo` both exporters and all opsets.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from numpy.typing import NDArray

from models.instrument.probes import Probe, find_probes
from models.instrument.taps import add_taps
from tests.zoo.exports import Exporter, Recording, export
from tests.zoo.families import FAMILIES, build, example

_DEFAULT: list[tuple[Exporter, int]] = [("dynamo", 20)]
_ALL: list[tuple[Exporter, int]] = [
    *(("dynamo", opset) for opset in (18, 19, 21, 22, 23, 24)),
    *(("torchscript", opset) for opset in range(11, 21)),
]
_CASES = [
    *(pytest.param(name, *how, id=f"{name}-{how[0]}-{how[1]}") for name in FAMILIES for how in _DEFAULT),
    *(pytest.param(name, *how, id=f"{name}-{how[0]}-{how[1]}", marks=pytest.mark.zoo) for name in FAMILIES for how in _ALL),
]


@pytest.mark.parametrize(("name", "exporter", "opset"), _CASES)
def test_layers_of_a_family(name: str, exporter: Exporter, opset: int, tmp_path: Path) -> None:
    """As many norms as the network has modules, as many adds as its architecture, and torch's values on every side."""
    network = build(name)
    if exporter == "torchscript" and opset < FAMILIES[name].oldest:
        pytest.skip(f"TorchScript's exporter cannot write {name} before opset {FAMILIES[name].oldest}")
    model = export(network, name, exporter, opset, tmp_path / "model.onnx")
    probes = find_probes(model)
    recording = Recording(network)
    inputs = example(name, batch=3, length=9)  # other extents than those of the export
    output = recording.run(*inputs)
    feed = {key: tensor.numpy() for key, tensor in zip(FAMILIES[name].axes, inputs, strict=True)}
    values = _run(model, probes, feed)
    _assert_same(values["output"], output.numpy(), "output")
    _assert_norms(probes, recording, values)
    _assert_adds([probe for probe in probes if probe.kind == "residual_add"], recording, values, FAMILIES[name].adds)


def _run(model: onnx.ModelProto, probes: list[Probe], feed: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
    """Every tensor that a probe names, and the output."""
    tapped = add_taps(model, [tensor for probe in probes for tensor in probe.tensors.values()])
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


def _assert_norms(probes: list[Probe], recording: Recording, values: dict[str, NDArray[np.float32]]) -> None:
    norms = {probe.layer: probe for probe in probes if probe.kind != "residual_add"}
    assert set(norms) == set(recording.norms)
    for path, (before, after) in recording.norms.items():
        module_before, module_after = before.numpy(), after.numpy()
        tensors = norms[path].tensors
        _assert_same(_as(values[tensors["before"]], module_before), module_before, f"{path}.before")
        _assert_same(_as(values[tensors["after"]], module_after), module_after, f"{path}.after")


def _as(value: NDArray[np.float32], like: NDArray[np.float32]) -> NDArray[np.float32]:
    """ConvNeXt normalizes over its channels with them moved to the end, inside the module."""
    return np.moveaxis(value, -1, 1) if value.shape != like.shape else value


def _assert_adds(adds: list[Probe], recording: Recording, values: dict[str, NDArray[np.float32]], expected: int) -> None:
    """Every probe is another one of the recorded adds, both sides being what torch added."""
    assert len(adds) == expected
    left = list(recording.adds)
    for add in adds:
        identity, residual, total = (values[add.tensors[side]] for side in ("identity", "residual", "sum"))
        match = next(
            (
                i
                for i, (a, b, s) in enumerate(left)
                if _close(total, s.numpy())
                and (
                    (_close(identity, a.numpy()) and _close(residual, b.numpy()))
                    or (_close(identity, b.numpy()) and _close(residual, a.numpy()))
                )
            ),
            None,
        )
        assert match is not None, f"{add.layer} is no add of torch's"
        del left[match]


def _close(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    scale = float(np.sqrt((expected.astype(np.float64) ** 2).mean()))
    return actual.shape == expected.shape and bool(np.abs(actual - expected).max() <= 1e-4 * max(scale, 1e-3))


def _assert_same(actual: NDArray[np.float32], expected: NDArray[np.float32], where: str) -> None:
    assert _close(actual, expected), f"{where}: {actual.shape} instead of {expected.shape}, or other values"
