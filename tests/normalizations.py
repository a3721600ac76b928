"""Tiny graphs of one normalization each, as operators and written out, and what torch computes at the same place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

EPSILON = 0.125
C, D = 4, 6
_RNG = np.random.default_rng(0)


def _random(*shape: int) -> NDArray[np.float32]:
    return _RNG.normal(0.5, 1, shape).astype(np.float32)


CONSTANTS: Mapping[str, NDArray[Any]] = {
    "gamma_c": _random(C),
    "beta_c": _random(C),
    "mean_c": _random(C),
    "var_c": _random(C) ** 2 + 0.5,
    "gamma_d": _random(D),
    "beta_d": _random(D),
    "gamma_c11": _random(C, 1, 1),
    "beta_c11": _random(C, 1, 1),
    "ones_2": np.ones(2, np.float32),
    "zeros_2": np.zeros(2, np.float32),
    "to_groups": np.array([0, 2, -1]),
    "last": np.array([-1]),
    "channels": np.array([1]),
    "two": np.array(2, np.float32),
    "eps": np.array(EPSILON, np.float32),
}
IMAGE, TOKENS = _random(1, C, 5, 3), _random(1, 7, D)


@dataclass(frozen=True)
class Case:
    """x -> y through one normalization; `expected` is its value before gamma and beta, by torch."""

    lines: Sequence[str]
    x: NDArray[np.float32]
    expected: Callable[[Tensor], Tensor]
    gamma: str
    beta: str | None
    attributes: Mapping[str, Any]

    @property
    def model(self) -> onnx.ModelProto:
        return graph(self.lines, self.x, **self.attributes)


def graph(lines: Sequence[str], x: NDArray[np.float32], **attributes: Any) -> onnx.ModelProto:
    """Lines `output = Operator input ...`, the last output y; `attributes` are those of the normalizations."""
    nodes = []
    for line in lines:
        output, _, call = line.partition(" = ")
        operator, *inputs = call.split()
        given = attributes if "Normalization" in operator else {}
        nodes.append(helper.make_node(operator, inputs, [output], name=f"/block/{output}", **given))
    used = {name for node in nodes for name in node.input}
    constants = {**CONSTANTS, "x_shape": np.array(x.shape)}
    made = helper.make_graph(
        nodes,
        "normalization",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _constant(name: str) -> Tensor:
    return torch.from_numpy(CONSTANTS[name])


_AFFINE_C11 = ("s = Mul n gamma_c11", "y = Add s beta_c11")
_WRITTEN_OUT = ("v = ReduceMean q {axes}", "e = Add v eps", "r = Sqrt e", "n = Div {numerator} r")
_MOMENTS = (
    "m = ReduceMean x last", "d = Sub x m", "q = Mul d d", "v = ReduceMean q last", "e = Add v eps", "s = Sqrt e",
    "r = Reciprocal s",
)  # fmt: skip


def _written_out(axes: str, numerator: str) -> list[str]:
    return [line.format(axes=axes, numerator=numerator) for line in _WRITTEN_OUT]


CASES: dict[str, Case] = {
    "batch_norm": Case(
        ["y = BatchNormalization x gamma_c beta_c mean_c var_c"],
        IMAGE,
        lambda x: F.batch_norm(x, _constant("mean_c"), _constant("var_c"), eps=EPSILON),
        "gamma_c",
        "beta_c",
        {"epsilon": EPSILON},
    ),
    "layer_norm": Case(
        ["y = LayerNormalization x gamma_d beta_d"],
        TOKENS,
        lambda x: F.layer_norm(x, (D,), eps=EPSILON),
        "gamma_d",
        "beta_d",
        {"epsilon": EPSILON},
    ),
    "group_norm": Case(
        ["y = GroupNormalization x gamma_c beta_c"],
        IMAGE,
        lambda x: F.group_norm(x, 2, eps=EPSILON),
        "gamma_c",
        "beta_c",
        {"epsilon": EPSILON, "num_groups": 2},
    ),
    "instance_norm": Case(
        ["y = InstanceNormalization x gamma_c beta_c"],
        IMAGE,
        lambda x: F.instance_norm(x, eps=EPSILON),
        "gamma_c",
        "beta_c",
        {"epsilon": EPSILON},
    ),
    "layer_norm, written out": Case(
        [
            "m = ReduceMean x last",
            "d = Sub x m",
            "q = Mul d d",
            *_written_out("last", "d"),
            "s = Mul n gamma_d",
            "y = Add s beta_d",
        ],
        TOKENS,
        lambda x: F.layer_norm(x, (D,), eps=EPSILON),
        "gamma_d",
        "beta_d",
        {},
    ),
    "layer_norm, as TensorFlow writes it": Case(
        [*_MOMENTS, "k = Mul r gamma_d", "a = Mul x k", "c = Mul m k", "h = Sub beta_d c", "y = Add a h"],
        TOKENS,
        lambda x: F.layer_norm(x, (D,), eps=EPSILON),
        "gamma_d",
        "beta_d",
        {},
    ),
    "layer_norm, as Keras writes it": Case(
        [*_MOMENTS, "k = Mul gamma_d r", "a = Mul k x", "l = Neg m", "c = Mul l k", "h = Add c beta_d", "y = Add h a"],
        TOKENS,
        lambda x: F.layer_norm(x, (D,), eps=EPSILON),
        "gamma_d",
        "beta_d",
        {},
    ),
    "layer_norm over the channels": Case(
        ["m = ReduceMean x channels", "d = Sub x m", "q = Mul d d", *_written_out("channels", "d"), *_AFFINE_C11],
        IMAGE,
        lambda x: F.layer_norm(x.movedim(1, -1), (C,), eps=EPSILON).movedim(-1, 1),
        "gamma_c11",
        "beta_c11",
        {},
    ),
    "rms_norm, written out": Case(
        ["q = Pow x two", *_written_out("last", "x"), "y = Mul n gamma_d"],
        TOKENS,
        lambda x: F.rms_norm(x, (D,), eps=EPSILON),
        "gamma_d",
        None,
        {},
    ),
    "group_norm, written out": Case(
        ["g = Reshape x to_groups", "i = InstanceNormalization g ones_2 zeros_2", "n = Reshape i x_shape", *_AFFINE_C11],
        IMAGE,
        lambda x: F.group_norm(x, 2, eps=EPSILON),
        "gamma_c11",
        "beta_c11",
        {"epsilon": EPSILON},
    ),
}
