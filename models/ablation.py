"""Which residual blocks a model could do without: an artifact and evaluation data in, one row for each residual add out. No torch.

A block whose residual branch F(x) is small against x, or whose removal changes no answer, acts as an identity: a surplus block that
the identity shortcut lets stand aside (He et al. 2015, arXiv:1512.03385, sections 1 and 4.2: responses of residual functions).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from models.artifact import Artifact, Layer
from models.data.batch import Batch
from models.evaluation import accuracy, evaluation_batches
from models.instrument.graph_file import read_graph
from models.instrument.shapes import infer_shapes
from models.observation import ObservedSession
from models.statistics.layers import SideLayout

_RESIDUAL_ADD = "residual_add"


@dataclass(frozen=True)
class BlockReport:
    """One residual add.

    Attributes:
        layer: its name.
        residual_ratio: l2(F(x)) / l2(x), the mean over the samples where it is defined.
        accuracy: of the model without this block's F(x), 0..1.
        surplus: whether its removal costs no accuracy on these samples.
    """

    layer: str
    residual_ratio: float
    accuracy: float
    surplus: bool


@dataclass(frozen=True)
class AblationReport:
    """Accuracy (0..1) of the whole model on so many samples, and its blocks, that of the smallest residual_ratio first."""

    accuracy: float
    samples: int
    blocks: tuple[BlockReport, ...]


def ablate(artifact: Artifact, archive: Path | None, samples: int | None) -> AblationReport:
    """Runs the model once as it is and once without each residual branch, on evaluation data.

    Args:
        artifact: of a classifier.
        archive: of its data set; the official one is downloaded without it.
        samples: of the evaluation data, chosen by a fixed seed; None for all.

    Raises:
        ValueError: the data are not the model's, or it has no residual add.
    """
    adds = tuple(layer for layer in artifact.manifest.layers if layer.kind == _RESIDUAL_ADD)
    if not adds:
        raise ValueError(f"{artifact.manifest.name} has no residual add; there is no branch to remove")
    batches = evaluation_batches(artifact, archive, samples)
    logits, labels, ratios = _run_all(artifact, adds, batches)
    order = sorted(range(len(adds)), key=lambda i: ratios[i])
    whole, *without = (accuracy(each, labels) for each in logits)
    blocks = (BlockReport(adds[i].layer, ratios[i], without[i], without[i] >= whole) for i in order)
    return AblationReport(whole, len(labels), tuple(blocks))


def _run_all(
    artifact: Artifact, adds: tuple[Layer, ...], batches: Iterator[Batch]
) -> tuple[list[NDArray[np.float32]], NDArray[np.int64], list[float]]:
    """Logits of the whole model and without each block, labels, and the mean residual_ratio of each block."""
    layout = SideLayout(adds)
    model = read_graph(artifact.model_path)
    values = infer_shapes(model, {}).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*values.input, *values.value_info)}
    switches = [_add_switch(model, layer, types.get(layer.tensors["residual"], onnx.TensorProto.FLOAT)) for layer in adds]
    session = ObservedSession(artifact, model, layout)
    logits: list[list[NDArray[np.float32]]] = [[] for _ in (None, *switches)]
    labels, ratios = [], []
    with ThreadPoolExecutor() as workers:
        for inputs, target in batches:
            feed = session.feed(inputs)
            whole, observed = session.observe(feed, workers)
            ratios.append(observed.residual_ratio)
            logits[0].append(whole)
            for kept, (name, off) in zip(logits[1:], switches, strict=True):
                kept.append(session.scores({**feed, name: off}))
            labels.append(target)
    ratio = np.concatenate(ratios)
    defined = np.isfinite(ratio)
    means = np.where(defined, ratio, 0).sum(0) / np.maximum(defined.sum(0), 1)
    return [np.concatenate(each) for each in logits], np.concatenate(labels), means.tolist()


def _add_switch(model: onnx.ModelProto, layer: Layer, kind: int) -> tuple[str, NDArray[np.generic]]:
    """Multiplies F(x), of type `kind`, where it is added, by an input that is 1 unless a run gives it another value.

    Returns:
        the input and its value that removes F(x).
    """
    nodes = list(model.graph.node)
    position = next(i for i, node in enumerate(nodes) if layer.tensors["sum"] in node.output)
    residual, name = layer.tensors["residual"], f"ablation.{layer.layer}"
    scaled = f"{name}.residual"
    for i, each in enumerate(nodes[position].input):
        if each == residual:
            nodes[position].input[i] = scaled
    on = np.ones((), helper.tensor_dtype_to_np_dtype(kind))
    model.graph.initializer.append(numpy_helper.from_array(on, name))
    model.graph.input.append(helper.make_tensor_value_info(name, kind, []))
    model.graph.node.insert(position, helper.make_node("Mul", [residual, name], [scaled]))
    return name, np.zeros_like(on)
