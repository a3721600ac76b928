"""Networks of the zoo as ONNX, by either exporter of torch, and what torch itself computes at every normalization and add."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.zoo.families import FAMILIES, NORM_CLASSES, OneOutput, example

Exporter = Literal["dynamo", "torchscript"]
_SDPA_OPSET = 14  # the first in which TorchScript's exporter can write torch's fused attention


def export(network: OneOutput, name: str, exporter: Exporter, opset: int, path: Path) -> onnx.ModelProto:
    """The network of a family, written to `path`, with its normalizations where the exporter can be asked to keep them."""
    axes = FAMILIES[name].axes
    with warnings.catch_warnings(), torch.no_grad(), _quiet():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            dynamic = tuple(dict.fromkeys(each, torch.export.Dim.DYNAMIC) for each in axes.values())
            torch.onnx.export(
                network, example(name), path, dynamo=True, optimize=False, verbose=False, opset_version=opset,
                input_names=list(axes), output_names=["output"], dynamic_shapes=(dynamic,),
            )  # fmt: skip
        else:
            if opset < _SDPA_OPSET:
                network.network.set_attn_implementation("eager")  # type: ignore[operator]  # transformers' own networks all have it
            torch.onnx.export(
                network, example(name), path, dynamo=False, opset_version=opset, input_names=list(axes),
                output_names=["output"], dynamic_axes={**{k: dict(v) for k, v in axes.items()}, "output": {0: "batch"}},
                training=torch.onnx.TrainingMode.PRESERVE,  # otherwise it folds BatchNorm into Conv
            )  # fmt: skip
    return onnx.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """While it is entered: both sides of every normalization, by hooks that clone, and every add, copied when it is dispatched.

    Attributes:
        norms: module path -> (before, after).
        adds: (left, right, sum) of every add of two tensors with a batch axis and values of their own.
    """

    def __init__(self, network: OneOutput) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.norms: dict[str, tuple[Tensor, Tensor]] = {}
        self.adds: list[tuple[Tensor, Tensor, Tensor]] = []
        self._network = network

    def run(self, *inputs: Tensor) -> Tensor:
        """The network's output for these inputs."""
        handles = [
            module.register_forward_hook(self._watch(path))
            for path, module in self._network.named_modules()
            if type(module).__name__ in NORM_CLASSES
        ]
        with torch.no_grad(), self:
            output: Tensor = self._network(*inputs)
        for handle in handles:
            handle.remove()
        return output

    def _watch(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.norms[path] = (inputs[0].clone(), output.clone())

        return hook

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sides = args[:2] if func in (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor) else ()
        alike = len(sides) == 2 and all(isinstance(side, Tensor) and side.is_floating_point() for side in sides)
        before = [side.clone() for side in sides] if alike else []
        result = func(*args, **(kwargs or {}))
        if before:
            self.adds.append((before[0], before[1], result.clone()))
        return result
