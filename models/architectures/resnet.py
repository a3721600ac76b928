"""Residual networks: the ImageNet depths 18, 34, 50, 101 and 152 and the CIFAR depths 20 and 56, in one class.

A block computes y = relu(F(x) + x): the residual branch F is normalized (`bn`), the identity branch is not. Before each add and
each normalization lies a tensor whose statistics this project exists to show.

Names and shapes of the parameters are those of the official torchvision models, so that their checkpoints load as they are.

Sources: He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), table 1 for the depths, section 4.2 for
CIFAR; the stride in the 3x3 convolution of a bottleneck ("v1.5") and the zero-initialized last gamma of each block as in Goyal et
al. 2017 (arXiv:1706.02677, section 5.1).
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.normalization import NormalizationKind, normalization_layer


@dataclass(frozen=True)
class ResNetConfig:
    """What distinguishes one ResNet from another.

    Attributes:
        block: `basic` (two 3x3 convolutions) or `bottleneck` (1x1, 3x3, 1x1; the output is 4 times as wide).
        depths: number of blocks of each stage; every stage but the first halves the resolution.
        widths: channels inside the blocks of each stage.
        stem: `imagenet` (7x7 stride 2 and a max pool of stride 2) or `cifar` (3x3, stride 1).
        shortcut: where the shape changes, `projection` (1x1 convolution and norm) or `padding` (subsampled, zero channels added).
        classes: number of classes.
        normalization: `batch`, `group` or `layer`.
        residual: False leaves out every add: the plain network of the same depth.
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: Literal["imagenet", "cifar"] = "imagenet"
    shortcut: Literal["projection", "padding"] = "projection"
    classes: int = 1000
    normalization: NormalizationKind = "batch"
    residual: bool = True


_IMAGENET_DEPTHS: dict[int, tuple[Literal["basic", "bottleneck"], tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


def resnet_config(depth: int, *, classes: int, normalization: NormalizationKind = "batch", residual: bool = True) -> ResNetConfig:
    """The configuration of one of the published depths.

    Raises:
        ValueError: `depth` is none of 18, 34, 50, 101, 152 (ImageNet), 20, 56 (CIFAR).
    """
    if depth in _IMAGENET_DEPTHS:
        block, depths = _IMAGENET_DEPTHS[depth]
        return ResNetConfig(block=block, depths=depths, classes=classes, normalization=normalization, residual=residual)
    if depth in (20, 56):  # 6 n + 2 layers, He et al. 2015, section 4.2
        return ResNetConfig(
            block="basic",
            depths=((depth - 2) // 6,) * 3,
            widths=(16, 32, 64),
            stem="cifar",
            shortcut="padding",
            classes=classes,
            normalization=normalization,
            residual=residual,
        )
    known = ", ".join(str(d) for d in (*_IMAGENET_DEPTHS, 20, 56))
    raise ValueError(f"no ResNet of depth {depth} is defined; choose one of {known}")


class PaddingShortcut(nn.Module):
    """The parameter-free shortcut of the CIFAR networks (He et al. 2015, option A)."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        x = x[:, :, :: self.stride, :: self.stride]  # (N, C, H/s, W/s)
        return F.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))  # (N, channels, H/s, W/s)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: He et al. 2015, figure 5 left."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, shortcut: nn.Module | None, config: ResNetConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = normalization_layer(config.normalization, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = normalization_layer(config.normalization, width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut
        self.residual = config.residual

    @property
    def last_norm(self) -> nn.Module:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:  # (N, C_in, H, W)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))  # (N, width, H/s, W/s)
        out = self.bn2(self.conv2(out))  # (N, width, H/s, W/s)
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(x))
        return F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up: He et al. 2015, figure 5 right, with the stride in the 3x3 convolution."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, shortcut: nn.Module | None, config: ResNetConfig) -> None:
        super().__init__()
        c_out = width * self.expansion
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = normalization_layer(config.normalization, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = normalization_layer(config.normalization, width)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = normalization_layer(config.normalization, c_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut
        self.residual = config.residual

    @property
    def last_norm(self) -> nn.Module:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:  # (N, C_in, H, W)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))  # (N, width, H, W)
        out = self.relu(self.bn2(self.conv2(out)))  # (N, width, H/s, W/s)
        out = self.bn3(self.conv3(out))  # (N, 4 width, H/s, W/s)
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(x))
        return F.relu(out, inplace=True)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pool, classifier."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.block = BasicBlock if config.block == "basic" else Bottleneck
        width = config.widths[0]
        if config.stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, 2, padding=1)
        else:
            self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = normalization_layer(config.normalization, width)
        self.relu = nn.ReLU(inplace=True)
        self.stages = [f"layer{i + 1}" for i in range(len(config.depths))]
        c_in = width
        for i, name in enumerate(self.stages):
            self.add_module(name, self._stage(c_in, config.widths[i], config.depths[i], stride=1 if i == 0 else 2))
            c_in = config.widths[i] * self.block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, config.classes)
        self._initialize()

    def _stage(self, c_in: int, width: int, depth: int, stride: int) -> nn.Sequential:
        c_out = width * self.block.expansion
        blocks: list[nn.Module] = []
        for i in range(depth):
            shortcut = self._shortcut(c_in, c_out, stride) if i == 0 else None
            blocks.append(self.block(c_in, width, stride if i == 0 else 1, shortcut, self.config))
            c_in = c_out
        return nn.Sequential(*blocks)

    def _shortcut(self, c_in: int, c_out: int, stride: int) -> nn.Module | None:
        if not self.config.residual or (stride == 1 and c_in == c_out):
            return None
        if self.config.shortcut == "padding":
            return PaddingShortcut(c_out, stride)
        return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), normalization_layer(self.config.normalization, c_out))

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if self.config.residual:  # each block begins as an identity; a plain network would begin as zero
            for module in self.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    nn.init.zeros_(module.last_norm.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W), H and W at least 32
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N, 64, H/4, W/4)
        for name in self.stages:
            x = self.get_submodule(name)(x)  # (N, C, H/4 / 2^i, W/4 / 2^i)
        x = self.avgpool(x).flatten(1)  # (N, C)
        logits: Tensor = self.fc(x)  # (N, classes)
        return logits
