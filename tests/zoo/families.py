"""Networks from outside: a tiny configuration with random weights of each family of `transformers`; nothing is downloaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

NORM_CLASSES = ("BatchNorm2d", "LayerNorm", "ConvNextLayerNorm", "T5LayerNorm", "LlamaRMSNorm")
_IMAGE_AXES = {"pixel_values": {0: "batch"}}
_TEXT_AXES = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        build: the network with random weights.
        adds: residual adds of one pass, counted in the architecture's description.
        axes: inputs and their dynamic axes.
        output: which field of the network's answer is exported.
        oldest: the first opset that TorchScript's exporter can write it in.
    """

    build: Callable[[], nn.Module]
    adds: int
    axes: Mapping[str, Mapping[int, str]]
    output: str
    oldest: int = 11


class OneOutput(nn.Module):
    """Takes the inputs in order and returns a single tensor, which is what the exporters want."""

    def __init__(self, network: nn.Module, names: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.network, self.names, self.output = network, names, output

    def forward(self, *inputs: Tensor) -> Any:
        named = dict(zip(self.names, inputs, strict=True))
        options = {"use_cache": False} if hasattr(self.network.config, "use_cache") else {}
        return getattr(self.network(**named, **options), self.output)


def _config(name: str, **values: Any) -> Any:
    return getattr(transformers, f"{name}Config")(**values)


def _resnet() -> nn.Module:
    config = _config("ResNet", embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[2, 1, 1, 1], num_labels=3)
    return transformers.ResNetForImageClassification(config)


def _efficientnet() -> nn.Module:
    config = _config(
        "EfficientNet", image_size=64, width_coefficient=0.5, depth_coefficient=1.0, in_channels=[32, 16, 24],
        out_channels=[16, 24, 40], kernel_sizes=[3, 3, 5], strides=[1, 2, 2], expand_ratios=[1, 6, 6],
        num_block_repeats=[1, 2, 3], depthwise_padding=[], hidden_dim=640, num_labels=3,
    )  # fmt: skip
    return transformers.EfficientNetForImageClassification(config)


def _convnext() -> nn.Module:
    config = _config("ConvNext", hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1], num_labels=3, layer_scale_init_value=0.3)
    return transformers.ConvNextForImageClassification(config)


def _vit() -> nn.Module:
    config = _config(
        "ViT", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def _swin() -> nn.Module:
    config = _config(
        "Swin", image_size=32, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=4, num_labels=3
    )  # fmt: skip
    return transformers.SwinForImageClassification(config)


def _bert() -> nn.Module:
    config = _config(
        "Bert", vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3,
        max_position_embeddings=32,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def _gpt2() -> nn.Module:
    config = _config("GPT2", vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


def _t5() -> nn.Module:
    config = _config("T5", vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return transformers.T5EncoderModel(config)


def _llama() -> nn.Module:
    config = _config(
        "Llama", vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


FAMILIES = {
    "resnet": Family(_resnet, adds=5, axes=_IMAGE_AXES, output="logits"),  # 1 per block
    "efficientnet": Family(_efficientnet, adds=3, axes=_IMAGE_AXES, output="logits"),  # 1 per block that repeats a stage
    "convnext": Family(_convnext, adds=5, axes=_IMAGE_AXES, output="logits"),  # 1 per block
    "vit": Family(_vit, adds=4, axes=_IMAGE_AXES, output="logits"),  # 2 per layer, as in all below
    "swin": Family(_swin, adds=6, axes=_IMAGE_AXES, output="logits"),
    "bert": Family(_bert, adds=4, axes=_TEXT_AXES, output="logits"),
    "gpt2": Family(_gpt2, adds=4, axes=_TEXT_AXES, output="logits"),
    "t5": Family(_t5, adds=4, axes=_TEXT_AXES, output="last_hidden_state", oldest=12),  # Min of integers
    "llama": Family(_llama, adds=4, axes=_TEXT_AXES, output="logits"),
}


def build(name: str) -> OneOutput:
    """The network of a family with lively parameters of its normalizations, ready to be exported."""
    family = FAMILIES[name]
    torch.manual_seed(7)
    network = family.build()
    for module in network.modules():
        if type(module).__name__ not in NORM_CLASSES:
            continue
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        nn.init.uniform_(tensors["weight"], 0.5, 1.5)
        if "bias" in tensors:
            nn.init.normal_(tensors["bias"], std=0.2)
        if "running_mean" in tensors:
            nn.init.normal_(tensors["running_mean"], std=0.1)
            nn.init.uniform_(tensors["running_var"], 0.5, 2.0)
    return OneOutput(network.eval(), tuple(family.axes), family.output).eval()


def example(name: str, batch: int = 2, length: int = 7) -> tuple[Tensor, ...]:
    """Inputs of a family; the second text of a batch is shorter, and masked behind its end."""
    axes = FAMILIES[name].axes
    generator = torch.Generator().manual_seed(5)
    if "pixel_values" in axes:
        size = 64 if name in ("resnet", "efficientnet", "convnext") else 32
        return (torch.randn(batch, 3, size, size, generator=generator),)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[1:, length // 2 + 1 :] = 0
    return torch.randint(3, 50, (batch, length), generator=generator), mask
