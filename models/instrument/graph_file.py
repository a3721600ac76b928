"""An ONNX file in, its graph out: with the small constants that probes are described by, without the weights that only runs need.

So a model of any size can be looked at, also one of more than 2 GB, whose weights lie in files of their own (external data).
"""

from pathlib import Path

import onnx
from onnx.external_data_helper import load_external_data_for_tensor
from onnx.inliner import inline_local_functions

from models.instrument.graph import subgraphs
from models.instrument.norms import is_in_training

_MOST_ELEMENTS = 1 << 16  # of a constant that is read: gamma and beta of a norm, shapes, exponents


class GraphFileError(ValueError):
    """The file is no ONNX graph, or its external data is missing."""


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph of an ONNX file, with the nodes of its functions in the place of their calls.

    External tensors of more than 65,536 elements are left where they are.

    Raises:
        GraphFileError: unreadable, not ONNX, or the external data of a small tensor is missing or lies outside the file's folder.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's exceptions share no base with OSError
        raise GraphFileError(f"{path} cannot be read as ONNX ({error}); give the file that an exporter wrote") from error
    if not model.graph.node:
        raise GraphFileError(f"{path} holds no graph; give the file that an exporter wrote")
    model = inlined(model)
    for tensor in model.graph.initializer:
        elements = 1
        for extent in tensor.dims:
            elements *= extent
        if tensor.data_location != onnx.TensorProto.EXTERNAL or elements > _MOST_ELEMENTS:
            continue
        try:
            load_external_data_for_tensor(tensor, str(path.parent))
        except Exception as error:  # of onnx.checker, and those of the file system
            raise GraphFileError(f"the external data of {tensor.name} in {path} cannot be read: {error}") from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return model


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the nodes of its own functions in the place of their calls; itself where it has none."""
    return inline_local_functions(model) if model.functions else model


def remarks(model: onnx.ModelProto, norms: int) -> list[str]:
    """What a reader of the probes should know: that there are no normalizations, or places that were not looked into."""
    said = []
    training = sum(is_in_training(node) for node in model.graph.node)
    if training:
        said.append(
            f"{training} BatchNormalization take mean and variance of the batch, as in training, so that requests change "
            "each other's answers: they are not watched; export the model in inference mode (torch: model.eval())"
        )
    if not norms and not training:
        said.append("no normalization is in the graph: the model has none, or its BatchNorm was folded into Conv at export")
    inside = sum(bool(subgraphs(node)) for node in model.graph.node)
    if inside:
        said.append(f"{inside} of the nodes are If, Loop or Scan: what is inside them is left alone")
    if model.functions:
        names = ", ".join(function.name for function in model.functions)
        said.append(f"functions of another opset than the model's are left alone: {names}; export the model with one opset")
    return said
