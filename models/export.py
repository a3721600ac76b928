"""Trained network in, artifact out: ONNX with every norm node intact, checked against torch.

The steps, in order: export without the exporter's optimizer (it would fold BatchNorm into Conv), fold constants, remove what is
unused, name nodes and weights by module path, drop the exporter's metadata (it holds paths of the exporting machine), store large
convolution weights as float16 with a Cast, count the norms, compare the logits with torch.
"""

import ast
import logging
import platform
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as library_version
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
import onnxruntime
import torch
from onnx import TensorProto, numpy_helper
from onnxscript import optimizer
from torch import Tensor, nn

from models.instrument.graph import Graph
from models.instrument.norms import find_norms

OPSET = 20
PARITY_TOLERANCE = 1e-4
"""Largest absolute difference of a logit between torch and ONNX Runtime."""

_NORM_MODULES = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
_SCOPES = "pkg.torch.onnx.name_scopes"
_HALF_MIN_ELEMENTS = 1024  # smaller tensors save nothing
_NAMED_BY_MODULE = {
    "Conv", "Gemm", "BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization",
}  # fmt: skip
TRANSPOSED = ".transposed"
"""Suffix of a Linear's weight that the exporter stores as (in, out)."""


class ExportError(RuntimeError):
    """The exported graph is not the network; nothing was written."""


@dataclass(frozen=True)
class Signature:
    """Names of inputs and output, and which axes of each input are dynamic, by name."""

    inputs: dict[str, dict[int, str]]
    output: str = "logits"

    def dynamic_shapes(self) -> tuple[dict[int, object], ...]:
        return tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in self.inputs.values())


IMAGE_SIGNATURE = Signature({"image": {0: "batch", 2: "height", 3: "width"}})
TEXT_SIGNATURE = Signature({"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}})


def round_to_half(model: nn.Module) -> None:
    """Rounds, in place, the weights that `half=True` stores as float16, so that torch and the export compute with the same."""
    with torch.no_grad():
        for parameter in model.parameters():
            if stored_as_half(tuple(parameter.shape)):
                parameter.copy_(parameter.half().float())


def stored_as_half(shape: Sequence[int]) -> bool:
    """Matrices and convolution kernels; vectors (norm parameters, biases) stay float32."""
    return len(shape) > 1 and int(np.prod(shape)) >= _HALF_MIN_ELEMENTS


def export_onnx(model: nn.Module, example: tuple[Tensor, ...], signature: Signature, *, half: bool = False) -> onnx.ModelProto:
    """The network as ONNX, checked to hold all of its normalizations.

    Args:
        model: on the CPU; with `half`, already rounded by `round_to_half`.
        example: inputs with extents of at least 2 along every dynamic axis.
        signature: names for the inputs, the output and the dynamic axes.
        half: store large weights as float16 and cast them in the graph.

    Raises:
        ExportError: the graph does not hold each normalization of the network exactly once.
    """
    model.eval()
    exported = _run_exporter(model, example, signature)
    optimizer.fold_constants(exported)
    ir_passes.RemoveUnusedNodesPass()(exported)
    _name_by_module(exported)
    _strip_metadata(exported)
    proto = ir.to_proto(exported)
    _name_signature(proto, signature)
    if half:
        _store_as_half(proto)
    onnx.checker.check_model(proto, full_check=True)
    _check_norms(model, proto)
    return proto


def _run_exporter(model: nn.Module, example: tuple[Tensor, ...], signature: Signature) -> ir.Model:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of every library that is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=list(signature.inputs),
            output_names=[signature.output],
            dynamic_shapes=signature.dynamic_shapes(),
        )
    assert program is not None  # only None when a file is written
    return program.model


def _name_by_module(model: ir.Model) -> None:
    """Node names: the module path, for norms and weighted layers alone; with the operator behind it otherwise."""
    taken: Counter[str] = Counter()
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['']"))
        path = next((scope for scope in reversed(scopes[:-1]) if not scope.startswith("_")), "")
        base = path if node.op_type in _NAMED_BY_MODULE and path else f"{path}.{node.op_type.lower()}".lstrip(".")
        taken[base] += 1
        node.name = base if taken[base] == 1 else f"{base}.{taken[base]}"
        if node.op_type == "MatMul" and (weight := node.inputs[1]) is not None and weight.is_initializer():
            ir.convenience.rename_values([weight], [f"{path}.weight{TRANSPOSED}"])
        for i, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = node.name + (":out" if i == 0 else f":out{i}")


def _strip_metadata(model: ir.Model) -> None:
    ir_passes.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.name = "model"


def _name_signature(proto: onnx.ModelProto, signature: Signature) -> None:
    """Names the dynamic axes everywhere; an extent that is an expression of the exporter's symbols becomes unknown."""
    names: dict[str, str] = {}
    for value, axes in zip(proto.graph.input, signature.inputs.values(), strict=True):
        for axis, name in axes.items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if not dimension.dim_param:
                continue
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]
            else:
                dimension.Clear()


def _store_as_half(proto: onnx.ModelProto) -> None:
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or not stored_as_half(tensor.dims):
            continue
        name, stored = tensor.name, f"{tensor.name}.float16"
        values = numpy_helper.to_array(tensor)
        halves = values.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), values):
            raise ExportError(f"{name} is not rounded to float16; call round_to_half on the network first")
        tensor.CopyFrom(numpy_helper.from_array(halves, stored))
        casts.append(onnx.helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _check_norms(model: nn.Module, proto: onnx.ModelProto) -> None:
    expected = sorted(name for name, module in model.named_modules() if isinstance(module, _NORM_MODULES))
    found = sorted(norm.name for norm in find_norms(Graph(proto)))
    if found != expected:
        raise ExportError(f"the network has the norms {expected}, the graph {found}; was it optimized?")


def largest_difference(model: nn.Module, onnx_bytes: bytes, inputs: Sequence[tuple[Tensor, ...]]) -> float:
    """Largest absolute difference of the logits between torch and ONNX Runtime over several inputs.

    Raises:
        ExportError: it is above `PARITY_TOLERANCE`.
    """
    session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    largest = 0.0
    model.eval()
    for example in inputs:
        with torch.no_grad():
            expected = model(*example).numpy()
        feed = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
        (actual,) = session.run(None, feed)
        largest = max(largest, float(np.abs(actual - expected).max()))
    if not largest <= PARITY_TOLERANCE:
        raise ExportError(f"torch and ONNX Runtime differ by {largest:.2e}, more than {PARITY_TOLERANCE:.0e}")
    return largest


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies the weights of an exported ONNX file back into the network it was exported from (the inverse of `export_onnx`).

    Raises:
        ExportError: a parameter of the network is not in the file.
    """
    graph = Graph(onnx.load(path))
    state = model.state_dict()
    for name, target in state.items():
        value = graph.constant(name)
        if value is None and (transposed := graph.constant(name + TRANSPOSED)) is not None:
            value = transposed.T
        if value is None:
            if name.endswith("num_batches_tracked"):
                continue
            raise ExportError(f"{path} has no weight {name!r}; it was not exported from this network")
        target.copy_(torch.from_numpy(np.array(value)))


def library_versions() -> dict[str, str]:
    """Versions of what takes part in an export."""
    names = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow", "tokenizers")
    return {"python": platform.python_version()} | {name: library_version(name) for name in names}
