"""The choice of layers by a glob, shared by all routes that take `layers=`."""

import fnmatch
import re
from collections.abc import Sequence

from models.artifact import Layer
from service.errors import UnknownLayerError

MAX_PATTERN_LENGTH = 2000
_GLOB = re.compile(r"[*?\[]")


def choose_layers(layers: Sequence[Layer], pattern: str, model: str) -> list[Layer]:
    """The layers whose name matches a glob (`*`, `?`, `[...]`), or one of several separated by commas, in the given order.

    Raises:
        UnknownLayerError: a part matches none, or there is none.
    """
    if not layers:
        raise UnknownLayerError(
            f"{model} has no layers that can be watched",
            value=pattern,
            limit="0 layers",
            remedy=f"ask without statistics; GET /v1/models/{model} tells in its notes why",
        )
    names = {layer.layer for layer in layers}
    chosen: set[str] = set()
    for part in (part.strip() for part in pattern.split(",")):
        matching = _matching(names, part)
        if not matching:
            raise UnknownLayerError(
                f"no layer of {model} matches {part!r}",
                value=part,
                limit=f"{len(layers)} layers",
                remedy=f"GET /v1/models/{model}/layers lists the layers",
            )
        chosen.update(matching)
    return [layer for layer in layers if layer.layer in chosen]


def _matching(names: set[str], part: str) -> set[str]:
    if not _GLOB.search(part):
        return names & {part}
    matches = re.compile(fnmatch.translate(part)).match  # `fnmatch` itself would keep tens of thousands of what clients send
    return {name for name in names if matches(name)}
