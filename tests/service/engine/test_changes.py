"""Changes of a request -> inputs and formulas, without a server."""

import numpy as np
import pytest

from models.artifact import Layer
from models.instrument.formulas import Formula
from models.instrument.graph import Dimension
from models.statistics.layers import SideLayout
from service.engine.changes import moments_of_layers, renormalization
from service.errors import InvalidRequestError
from tests.models.statistics.test_layers import layer


def _shaped(plain: Layer, shape: list[Dimension] | None) -> Layer:
    return plain.model_copy(update={"shape": shape, "epsilon": 0.1})


_FIRST = _shaped(layer("first", "batch_norm", {"before": "a", "after": "b"}, axis=1), ["batch", 2, 4, 4])
_ADD = _shaped(layer("add", "residual_add", {"identity": "b", "residual": "f", "sum": "s"}, axis=1), ["batch", 2, 4, 4])
_LAST = _shaped(layer("last", "layer_norm", {"before": "s", "after": "t"}, axis=2), ["batch", "length", 3])


def test_each_normalization_gets_the_moments_of_what_enters_it() -> None:
    """From the channels of all reductions one after the other, where each tensor is once: those of the before sides."""
    layout = SideLayout((_FIRST, _ADD, _LAST))
    # a, b, f, s with 2 channels each; s again along its last axis, and t, with 3
    mean = np.array([0, 1, 10, 11, 20, 21, 30, 31, 40, 41, 42, 50, 51, 52], np.float32)
    assert len(layout.reductions) == 6
    moments = moments_of_layers(layout, mean, mean + 0.5)
    assert set(moments) == {"first", "last"}
    np.testing.assert_array_equal(moments["first"].mean, [0, 1])
    np.testing.assert_array_equal(moments["last"].mean, [40, 41, 42])
    np.testing.assert_array_equal(moments["last"].var, [40.5, 41.5, 42.5])


@pytest.mark.parametrize("shape", [None, ["batch", "channels", 4, 4]])
def test_channels_that_the_manifest_does_not_count_have_no_moments(shape: list[Dimension] | None) -> None:
    """Where the number of channels is not known, nothing is taken from the wrong place."""
    assert moments_of_layers(SideLayout((_shaped(_FIRST, shape), _LAST)), np.zeros(10), np.zeros(10)) == {}


def test_layer_normalization_keeps_the_axes_that_an_rms_norm_has() -> None:
    """Over the last two axes stays over the last two; without known axes it is the last."""
    rms = _LAST.model_copy(update={"kind": "rms_norm"})
    with_axes = renormalization(rms, Formula(0.1, axes=(1, 2), centred=False), "layer", 0, None)
    assert with_axes.formula == Formula(0.1, axes=(1, 2))
    assert renormalization(rms, None, "layer", 0, None).formula == Formula(0.1, axes=(-1,))


def test_a_layer_without_a_shape_cannot_be_changed() -> None:
    """Formulas need to know the channels: an error that names the layer."""
    with pytest.raises(InvalidRequestError, match="first"):
        renormalization(_shaped(_FIRST, None), None, "none", 0, None)
