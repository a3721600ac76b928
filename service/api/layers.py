"""The choice of layers by a glob, shared by all routes that take `layers=`."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from models.artifact import Layer
from service.errors import UnknownLayerError


def choose_layers(layers: Sequence[Layer], pattern: str, model: str) -> list[Layer]:
    """The layers whose name matches a glob (`*`, `?`, `[...]`), or one of several separated by commas, in the given order.

    Raises:
        UnknownLayerError: none matches.
    """
    patterns = [part.strip() for part in pattern.split(",")]
    chosen = [layer for layer in layers if any(fnmatchcase(layer.layer, part) for part in patterns)]
    if not chosen:
        raise UnknownLayerError(
            f"no layer of {model} matches {pattern[:200]!r}",
            value=pattern,
            limit=f"{len(layers)} layers",
            remedy=f"GET /v1/models/{model}/layers lists the layers",
        )
    return chosen
