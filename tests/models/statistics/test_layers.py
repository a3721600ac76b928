from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from models.artifact import Layer
from models.statistics.layers import BatchReducer, RunOutputs, SideLayout
from tests.oracle import assert_pair, assert_side

Arrays = dict[str, NDArray[np.float32]]


def layer(name: str, kind: str, tensors: dict[str, str], axis: int, mask: str | None = None) -> Layer:
    """A probe on the given tensors."""
    return Layer.model_validate(
        {
            "layer": name,
            "kind": kind,
            "shape": None,
            "channel_axis": axis,
            "epsilon": None,
            "gamma": None,
            "beta": None,
            "tensors": tensors,
            "mask": mask,
        }
    )


NORM = layer("norm", "batch_norm", {"before": "a", "after": "b"}, axis=1)
ADD = layer("add", "residual_add", {"identity": "a", "residual": "f", "sum": "s"}, axis=1)
TOKENS = layer("tokens", "layer_norm", {"before": "t", "after": "u"}, axis=2, mask="mask")


def activations(n: int = 3) -> tuple[Arrays, dict[str, NDArray[np.int64]]]:
    """Tensors of a small and a large layer, and of tokens with padding."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal((n, 8, 6, 6)).astype(np.float32) for name in "abf"}
    tensors["s"] = tensors["a"] + tensors["f"]
    tensors |= {name: rng.standard_normal((n, 5, 4)).astype(np.float32) for name in "tu"}
    mask = np.ones((n, 5), np.int64)
    mask[0, 2:] = 0
    return tensors, {"mask": mask}


@pytest.mark.parametrize("threads", [None, 2])
def test_each_sample_and_side_by_its_definition(threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stacked or alone, on one thread or two: every side of every sample is that of its own tensor."""
    monkeypatch.setattr("models.statistics.layers._SHARED_ELEMENTS", 0)
    layout = SideLayout((NORM, ADD, TOKENS))
    tensors, inputs = activations()
    with ThreadPoolExecutor(threads) as workers:
        batch = BatchReducer(layout).reduce(RunOutputs(tensors), inputs, workers if threads else None)
    for i in range(3):
        described = batch.sample(i).describe(layout.layers, channels=False)
        real = inputs["mask"][i].astype(bool)
        for one, tensor_of in zip(described, layout.layers, strict=True):
            for side, name in tensor_of.tensors.items():
                tensor = tensors[name][i]
                assert_side(one[side], tensor[real] if tensor_of.mask else tensor, f"{i}.{side}")
        assert_pair(described[1], tensors["a"][i], tensors["f"][i], "add")


def test_nonfinite_values_blank_their_side_alone() -> None:
    """A NaN in F(x) leaves x intact, blanks F(x) and the relation of both, and never reaches JSON."""
    layout = SideLayout((ADD,))
    tensors, inputs = activations()
    tensors["f"][1, 2, 0, 0] = np.nan
    batch = BatchReducer(layout).reduce(RunOutputs(tensors), inputs)
    (described,) = batch.sample(1).describe(layout.layers, channels=True)
    assert described["residual"]["nonfinite"] == 1
    assert described["residual"]["count"] == 8 * 36
    assert all(described["residual"][name] is None for name in ("mean", "var", "std", "min", "max", "l2", "zeros"))
    assert described["residual"]["channels"]["nonfinite"] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert described["residual"]["channels"]["mean"][2] is None
    assert described["residual"]["channels"]["mean"][3] is not None
    assert described["identity"]["mean"] is not None
    assert (described["residual_ratio"], described["cosine"]) == (None, None)
    (neighbour,) = batch.sample(0).describe(layout.layers, channels=False)
    assert neighbour["residual_ratio"] is not None


def test_relation_of_an_identity_of_zeros() -> None:
    """Where x is all zeros neither the ratio nor the cosine is defined; where F(x) is, the ratio is 0."""
    layout = SideLayout((ADD,))
    tensors, inputs = activations()
    tensors["a"][0], tensors["f"][1] = 0, 0
    batch = BatchReducer(layout).reduce(RunOutputs(tensors), inputs)
    first, second = (batch.sample(i).describe(layout.layers, channels=False)[0] for i in range(2))
    assert (first["residual_ratio"], first["cosine"]) == (None, None)
    assert (second["residual_ratio"], second["cosine"]) == (0.0, None)
