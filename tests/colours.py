"""A classifier of photos by their mean colour, with residual blocks small enough to be computed by numpy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from models.artifact import Artifact
from models.data import imagenette
from models.graph_import import ImportOptions, import_graph
from tests import graphs


def import_colours(
    folder: Path,
    side: int,
    blocks: Mapping[str, NDArray[Any]],
    head: NDArray[Any],
    kind: int = onnx.TensorProto.FLOAT,
    batch: str | int = "batch",
) -> Artifact:
    """brightest = max(image); logits = x H after blocks x = x + x W from the mean colour x on, each an Add of its name.

    Args:
        folder: in which everything is written, the artifact as `repository/colours/1`.
        side: pixels of the photos that it takes.
        blocks: name -> W, float32 (3, 3).
        head: H, float32 (3, 10).
        kind: of all tensors; the weights are rounded to it.
        batch: extent of axis 0.
    """
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["c"])]
    x = "c"
    for name in blocks:
        nodes.append(helper.make_node("MatMul", [x, f"{name}.w"], [f"{name}.f"]))
        nodes.append(helper.make_node("Add", [x, f"{name}.f"], [f"{name}.s"], name=name))
        x = f"{name}.s"
    nodes.append(helper.make_node("MatMul", [x, "head"], ["logits"]))
    weights = {"head": head} | {f"{name}.w": weight for name, weight in blocks.items()}
    nodes.append(helper.make_node("ReduceMax", ["image"], ["brightest"], axes=[1, 2, 3], keepdims=0))
    model = graphs.graph_of(
        nodes,
        {"image": (kind, [batch, 3, side, side])},
        {"brightest": (kind, [batch]), "logits": (kind, [batch, 10])},
        {name: weight.astype(helper.tensor_dtype_to_np_dtype(kind)) for name, weight in weights.items()},
    )
    graphs.save(model, folder / "model.onnx")
    (folder / "labels").write_text("\n".join(imagenette.CLASSES.values()))
    (folder / "image.json").write_text(f'{{"kind": "image", "resize": {side}, "crop": {side}}}')
    options = ImportOptions(folder / "labels", folder / "image.json")
    return import_graph(folder / "model.onnx", folder / "repository" / "colours" / "1", options)
