"""The statistics of a tensor by their definitions in float64, and the tolerances within which the service must agree."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def expected_side(tensor: NDArray[Any]) -> dict[str, float]:
    """Every statistic of one side of one sample, straight from its definition."""
    x = tensor.astype(np.float64)
    return {
        "count": x.size,
        "mean": x.mean(),
        "var": x.var(),
        "std": x.std(),
        "min": x.min(),
        "max": x.max(),
        "l2": np.sqrt((x**2).sum()),
        "zeros": (x == 0).mean(),
        "nonfinite": 0,
    }


def assert_side(actual: dict[str, Any], tensor: NDArray[Any], where: str) -> None:
    """`actual` agrees with the tensor: mean, std, min, max 1e-4 max(|ref|, s), var 2e-4 max(var, s^2), l2 1e-4, zeros 1e-3."""
    expected = expected_side(tensor)
    s = np.sqrt((tensor.astype(np.float64) ** 2).mean())
    tolerances = {
        "count": 0.0,
        "nonfinite": 0.0,
        "zeros": 1e-3,
        "l2": 1e-4 * expected["l2"],
        "var": 2e-4 * max(expected["var"], s**2),
    }
    for name, reference in expected.items():
        tolerance = tolerances.get(name, 1e-4 * max(abs(reference), s))
        error = abs(actual[name] - reference)
        assert error <= tolerance, f"{where}.{name}: {actual[name]} instead of {reference}, off by {error:.2e} > {tolerance:.2e}"


def assert_pair(actual: dict[str, Any], identity: NDArray[Any], residual: NDArray[Any], where: str) -> None:
    """residual_ratio within 1e-4 relative, cosine within 1e-4 absolute."""
    x, f = identity.astype(np.float64).ravel(), residual.astype(np.float64).ravel()
    ratio = np.linalg.norm(f) / np.linalg.norm(x)
    cosine = f @ x / (np.linalg.norm(f) * np.linalg.norm(x))
    assert abs(actual["residual_ratio"] - ratio) <= 1e-4 * ratio, f"{where}: {actual['residual_ratio']} instead of {ratio}"
    assert abs(actual["cosine"] - cosine) <= 1e-4, f"{where}: {actual['cosine']} instead of {cosine}"


def assert_layers(layers: list[dict[str, Any]], recorded: Mapping[str, Mapping[str, Tensor]]) -> None:
    """`layers` of one prediction are the recorded ones, each with all its sides: layer -> side -> tensor."""
    assert {layer["layer"] for layer in layers} == set(recorded)
    for layer in layers:
        name = layer["layer"]
        sides = {side: tensor.numpy() for side, tensor in recorded[name].items()}
        for side, tensor in sides.items():
            assert_side(layer[side], tensor, f"{name}.{side}")
        if layer["kind"] == "residual_add":
            assert_pair(layer, sides["identity"], sides["residual"], name)


def assert_statistics_close(actual: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    """Two descriptions of the same layers agree within the tolerances of `assert_side` and `assert_pair`."""
    assert [layer["layer"] for layer in actual] == [layer["layer"] for layer in reference]
    for one, other in zip(actual, reference, strict=True):
        for key, expected in other.items():
            if isinstance(expected, dict):
                s = expected["l2"] / np.sqrt(expected["count"])
                assert one[key]["count"] == expected["count"]
                assert one[key]["nonfinite"] == expected["nonfinite"]
                assert abs(one[key]["zeros"] - expected["zeros"]) <= 1e-3
                assert abs(one[key]["l2"] - expected["l2"]) <= 1e-4 * expected["l2"]
                assert abs(one[key]["var"] - expected["var"]) <= 2e-4 * max(expected["var"], s**2)
                for name in ("mean", "std", "min", "max"):
                    assert abs(one[key][name] - expected[name]) <= 1e-4 * max(abs(expected[name]), s), (one["layer"], key, name)
            elif isinstance(expected, float):
                assert abs(one[key] - expected) <= 1e-4 * max(abs(expected), 1)
