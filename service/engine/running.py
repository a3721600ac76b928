"""What training has left in batch normalizations: an artifact in, the running mean and variance of what enters each out."""

from models.artifact import Artifact
from models.instrument.formulas import find_formulas
from models.instrument.graph_file import read_graph
from models.statistics.moments import Floats


def running_moments(artifact: Artifact) -> dict[str, tuple[Floats, Floats]]:
    """Mean and variance of every channel, (C,) each, by layer; those that the graph computes are left out.

    Raises:
        GraphFileError: the graph cannot be read.
    """
    sides = {
        layer.layer: (layer.tensors["before"], layer.tensors["after"])
        for layer in artifact.manifest.layers
        if layer.kind == "batch_norm"
    }
    if not sides:
        return {}
    formulas = find_formulas(read_graph(artifact.model_path), sides.values())
    known = {name: formulas[pair] for name, pair in sides.items() if pair in formulas}
    return {name: (each.mean, each.var) for name, each in known.items() if each.mean is not None and each.var is not None}
