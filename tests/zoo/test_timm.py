"""Image models of timm with random weights, where it is installed: its modules' norms, its architecture's adds."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from models.instrument.probes import find_probes
from models.instrument.taps import add_taps

timm = pytest.importorskip("timm", reason="timm is not installed; it needs a torchvision that fits torch")

_FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (8, {}),  # 1 per block
    "resnetv2_50": (16, {}),  # 1 per block, normalized before the convolutions
    "efficientnet_lite0": (9, {}),  # 1 per block but the first of each stage
    "mobilenetv3_small_050": (7, {}),  # the same, and the first of the fourth stage, which is as wide as the third at this width
    "convnext_atto": (12, {}),  # 1 per block: 2, 2, 6 and 2
    "vit_tiny_patch16_224": (24, {"img_size": 64}),  # 2 per layer, as below
    "swin_tiny_patch4_window7_224": (24, {"img_size": 56}),
}
_NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)  # timm's own are kinds of these


@pytest.mark.zoo
@pytest.mark.parametrize("name", _FAMILIES)
def test_layers_of_timm(name: str, tmp_path: Path) -> None:
    """Every norm is found under the path of its module, with torch's values before it; every add is one of the architecture."""
    adds, options = _FAMILIES[name]
    torch.manual_seed(7)
    network = timm.create_model(name, pretrained=False, num_classes=3, **options).eval()
    x = torch.randn(2, 3, options.get("img_size", 64), options.get("img_size", 64))
    before: dict[str, Tensor] = {}
    for path, module in network.named_modules():
        if isinstance(module, _NORMS):
            module.register_forward_pre_hook(lambda _, inputs, path=path: before.update({path: inputs[0].clone()}))
    with torch.no_grad():
        expected = network(x).numpy()
    recorded = dict(before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), tmp_path / "model.onnx", dynamo=True, optimize=False, verbose=False, opset_version=20)
    model = onnx.load(tmp_path / "model.onnx")
    probes = find_probes(model)
    norms = {probe.layer: probe.tensors["before"] for probe in probes if probe.kind != "residual_add"}
    assert set(norms) == set(recorded)
    assert len(probes) - len(norms) == adds
    tapped = add_taps(model, list(norms.values())).SerializeToString()
    session = onnxruntime.InferenceSession(tapped, providers=["CPUExecutionProvider"])
    made = [output.name for output in session.get_outputs()]
    values = dict(zip(made, session.run(made, {session.get_inputs()[0].name: x.numpy()}), strict=True))
    np.testing.assert_allclose(values[made[0]], expected, atol=1e-4)
    for path, tensor in norms.items():
        module_before = recorded[path].numpy()
        actual = np.moveaxis(values[tensor], -1, 1) if values[tensor].shape != module_before.shape else values[tensor]
        np.testing.assert_allclose(actual, module_before, atol=1e-4 * max(1, np.abs(module_before).max()), err_msg=path)
