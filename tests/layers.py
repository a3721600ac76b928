"""Layers as a manifest describes them, for tests that need no graph."""

from models.artifact import Layer

_SIDES = {"residual_add": ("identity", "residual", "sum")}


def image_layer(name: str, kind: str, channels: int) -> Layer:
    """A layer of this kind on (N, channels, 3, 3), with the sides that belong to it."""
    return Layer.model_validate(
        {
            "layer": name,
            "kind": kind,
            "shape": ["batch", channels, 3, 3],
            "channel_axis": 1,
            "epsilon": None,
            "gamma": None,
            "beta": None,
            "tensors": {side: f"{name}.{side}" for side in _SIDES.get(kind, ("before", "after"))},
        }
    )
