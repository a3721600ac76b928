"""Changes of a request -> inputs and formulas, without a server."""

import pytest

from models.artifact import Layer
from models.instrument.formulas import Formula
from models.instrument.graph import Dimension
from service.engine.changes import renormalization
from service.errors import InvalidRequestError
from tests.models.statistics.test_layers import layer


def _shaped(plain: Layer, shape: list[Dimension] | None) -> Layer:
    return plain.model_copy(update={"shape": shape, "epsilon": 0.1})


_LAST = _shaped(layer("last", "layer_norm", {"before": "s", "after": "t"}, axis=2), ["batch", "length", 3])


def test_layer_normalization_keeps_the_axes_that_an_rms_norm_has() -> None:
    """Over the last two axes stays over the last two; without known axes it is the last."""
    rms = _LAST.model_copy(update={"kind": "rms_norm"})
    with_axes = renormalization(rms, Formula(0.1, axes=(1, 2), centred=False), "layer", 0, None)
    assert with_axes.formula == Formula(0.1, axes=(1, 2))
    assert renormalization(rms, None, "layer", 0, None).formula == Formula(0.1, axes=(-1,))


def test_a_layer_without_a_shape_cannot_be_changed() -> None:
    """Formulas need to know the channels: an error that names the layer."""
    with pytest.raises(InvalidRequestError, match="last"):
        renormalization(_shaped(_LAST, None), None, "none", 0, None)
