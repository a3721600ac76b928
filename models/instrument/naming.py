"""Names of layers: from the nodes of an ONNX graph to the paths of the modules that they came from."""

import ast
from collections.abc import Sequence
from itertools import takewhile

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"  # of torch's dynamo exporter: module paths from the root to the node


def node_name(node: onnx.NodeProto) -> str:
    """The name of a node; that of its first output where it has none."""
    return node.name or node.output[0]


def module_path(nodes: Sequence[onnx.NodeProto]) -> str:
    """What the nodes of one layer have in common.

    The deepest module that all lie in, from the exporter's metadata; else the common folder of names such as
    `/encoder/layer.0/norm/Sub`, where `/layer/layer.0` is a sequence and its element; else the name of the last node.
    """
    scopes = _common([_scopes(node) for node in nodes])
    if scopes and scopes[-1]:
        return scopes[-1]
    folders = [part for part in _common([node.name.split("/")[:-1] for node in nodes]) if part]
    parts = [part for part, inner in zip(folders, [*folders[1:], ""], strict=False) if not inner.startswith(f"{part}.")]
    return ".".join(parts) or node_name(nodes[-1])


def sum_name(node: onnx.NodeProto) -> str:
    """The module that an addition lies in, with `.add`; the name of an Add or Sum where it tells no module."""
    path = module_path([node])
    return path if path == node_name(node) and node.op_type in ("Add", "Sum") else f"{path}.add"


def _scopes(node: onnx.NodeProto) -> list[str]:
    text = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return [str(scope) for scope in scopes[:-1]] if isinstance(scopes, list) else []  # the last is the node itself


def _common(paths: Sequence[Sequence[str]]) -> list[str]:
    """The longest beginning that all paths share."""
    return [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
