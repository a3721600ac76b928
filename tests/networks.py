"""Small networks with random weights, exported for real, and what torch says about their layers: the oracle of many tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.architectures.resnet import BasicBlock, Bottleneck, ResNet, ResNetConfig
from models.architectures.transformer import TransformerClassifier, TransformerConfig
from models.artifact import Artifact, Manifest, Provenance
from models.data.clinc150 import train_tokenizer
from models.export import IMAGE_SIGNATURE, TEXT_SIGNATURE, load_weights
from models.package import finish, write_model
from models.preprocessing import ImagePreprocessing, TextPreprocessing
from models.recipes import RECIPES

IMAGE_LABELS = ["tench", "church", "golf ball"]
TEXT_LABELS = ["balance", "greeting", "weather"]
SENTENCES = ["what is my account balance", "hello there my friend", "will it rain tomorrow", "how much money do i have"]
_NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def small_resnet() -> ResNet:
    """A bottleneck ResNet of 8 blocks' worth of structure at a hundredth of the cost, with lively running moments."""
    torch.manual_seed(1)
    network = ResNet(ResNetConfig(depths=(2, 1, 1, 1), widths=(8, 8, 16, 16), classes=len(IMAGE_LABELS)))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.0)
            nn.init.normal_(module.bias, std=0.2)
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(8, 3, 64, 64))
    return network.eval()


def small_encoder(vocabulary: int) -> TransformerClassifier:
    """A post-norm encoder of two layers."""
    torch.manual_seed(2)
    config = TransformerConfig(vocabulary, len(TEXT_LABELS), layers=2, width=16, heads=2, feed_forward=32, max_length=24)
    network = TransformerClassifier(config)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
    return network.eval()


def small_tokenizer() -> Tokenizer:
    """Word pieces of the few sentences above."""
    return train_tokenizer(SENTENCES, 200)


def draft_manifest(folder: Path, *, labels: list[str], preprocessing: ImagePreprocessing | TextPreprocessing) -> Manifest:
    """What is known of a model before it is exported."""
    return Manifest(
        name=folder.parent.name,
        version=folder.name,
        task="image-classification" if isinstance(preprocessing, ImagePreprocessing) else "text-classification",
        description="a small network with random weights",
        inputs=[],
        outputs=[],
        preprocessing=preprocessing,
        labels=labels,
        layers=[],
        training=Provenance(data="none", samples=0, selection_samples=0, seed=0, settings={}),
        metrics={},
        libraries={},
        files={},
    )


def write_small_repository(root: Path) -> tuple[ResNet, TransformerClassifier]:
    """Exports both small networks as `vision/1` and `text/1` below `root`; returns them with the weights that were exported."""
    vision, text = root / "vision" / "1", root / "text" / "1"
    resnet, tokenizer = small_resnet(), small_tokenizer()
    encoder = small_encoder(tokenizer.get_vocab_size())
    images = [(torch.randn(2, 3, 64, 64),), (torch.randn(1, 3, 32, 48),)]
    ids, mask = torch.randint(3, 60, (2, 6)), torch.ones(2, 6, dtype=torch.int64)
    mask[0, 4:] = 0
    written: list[Artifact] = [
        write_model(
            vision,
            resnet,
            examples=images,
            signature=IMAGE_SIGNATURE,
            half=True,
            manifest=draft_manifest(vision, labels=IMAGE_LABELS, preprocessing=ImagePreprocessing(resize=64, crop=64)),
        ),
        write_model(
            text,
            encoder,
            examples=[(ids, mask), (ids[1:, :1], mask[1:, :1])],
            signature=TEXT_SIGNATURE,
            half=False,
            manifest=draft_manifest(text, labels=TEXT_LABELS, preprocessing=TextPreprocessing(max_length=24)),
            tokenizer=tokenizer,
        ),
    ]
    for artifact in written:
        finish(artifact.folder, artifact.manifest)
    return resnet, encoder


def network_of(artifact: Artifact) -> nn.Module:
    """The torch network with the weights of an artifact."""
    recipe, rows = RECIPES[artifact.manifest.name], 0
    if isinstance(artifact.manifest.preprocessing, TextPreprocessing):
        rows = artifact.manifest.preprocessing.load_tokenizer(artifact.folder).get_vocab_size()
    network = recipe.network(len(artifact.manifest.labels), rows)
    load_weights(network, artifact.model_path)
    return network.eval()


@contextmanager
def recorded_sides(network: nn.Module) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Yields a dictionary that a forward pass fills: layer -> side -> tensor, copied at the moment it exists.

    Norms are watched by hooks that clone, because ResNet's activation works in place; adds have no module and are caught where they
    are dispatched, `residual` first as the networks write it for ResNet and second for the Transformer.
    """
    recorded: dict[str, dict[str, Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            recorded[name] = {"before": inputs[0].clone(), "after": output.clone()}

        return hook

    adds: list[tuple[Tensor, Tensor, Tensor]] = []
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, _NORMS) and type(module).__name__ != "AddNorm":
            handles.append(module.register_forward_hook(watch(name)))
    with _CopyingAdds(adds):
        yield recorded
    for handle in handles:
        handle.remove()
    if isinstance(network, ResNet):
        blocks = [name for name, module in network.named_modules() if isinstance(module, (BasicBlock, Bottleneck))]
        for block, (residual, identity, total) in zip(blocks, adds, strict=True):
            recorded[f"{block}.add"] = {"identity": identity, "residual": residual, "sum": total}
    else:
        units = [name for name, module in network.named_modules() if type(module).__name__ == "AddNorm"]
        for unit, (identity, residual, total) in zip(units, adds, strict=True):
            recorded[f"{unit}.add"] = {"identity": identity, "residual": residual, "sum": total}
            norm = network.get_submodule(unit)
            assert isinstance(norm, nn.LayerNorm)
            with torch.no_grad():
                after = torch.nn.functional.layer_norm(total, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            recorded[unit] = {"before": total, "after": after}


class _CopyingAdds(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Records every add of two tensors of one shape: (left, right, sum)."""

    def __init__(self, adds: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._adds = adds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = [arg.clone() for arg in args[:2]] if func is torch.ops.aten.add.Tensor and _alike(args) else None
        result = func(*args, **(kwargs or {}))
        if before:
            self._adds.append((before[0], before[1], result.clone()))
        return result


def _alike(args: Any) -> bool:
    return len(args) >= 2 and all(isinstance(a, Tensor) and a.ndim >= 3 for a in args[:2]) and args[0].shape == args[1].shape
