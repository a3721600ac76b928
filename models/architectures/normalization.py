"""The one formula behind batch, layer and group normalization, and the layers that ResNet may choose from.

Every normalization here computes

    y = (a - mu) / sqrt(sigma^2 + eps) * gamma + beta

and they differ only in the axes over which mu and sigma^2 (population moments: divided by the count) are taken:

| kind  | mu and sigma^2 are taken over                            | gamma, beta      |
| ----- | -------------------------------------------------------- | ---------------- |
| batch | N, H, W for each channel; running estimates at inference | one per channel  |
| layer | all elements of a sample (or of its last axes)           | one per element  |
| group | H, W and the channels of one group, for each sample      | one per channel  |

The functions below exist to be read and to be compared with torch's fused kernels; the networks use torch's modules.

Sources: batch normalization, Ioffe & Szegedy 2015 (arXiv:1502.03167, algorithms 1 and 2); layer normalization, Ba et al. 2016
(arXiv:1607.06450, equation 4); group normalization, Wu & He 2018 (arXiv:1803.08494, equations 1 to 6).
"""

from typing import Literal

import torch
from torch import Tensor, nn

NormalizationKind = Literal["batch", "layer", "group"]

GROUPS = 32
"""Default number of groups of group normalization (Wu & He 2018, table 3)."""


def standardize(a: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """(a - mu) / sqrt(sigma^2 + eps), with mu and sigma^2 taken over `axes` of `a`; the shape stays."""
    mean = a.mean(axes, keepdim=True)
    variance = a.var(axes, correction=0, keepdim=True)
    return (a - mean) / torch.sqrt(variance + eps)


def batch_norm(a: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """Batch normalization in training: a (N, C, H, W), gamma and beta (C,); moments over N, H and W."""
    shape = (1, -1, 1, 1)
    return standardize(a, (0, 2, 3), eps) * gamma.view(shape) + beta.view(shape)


def batch_norm_inference(a: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """Batch normalization at inference: a (N, C, H, W), the rest (C,); the running moments make it affine per channel."""
    shape = (1, -1, 1, 1)
    scale = gamma / torch.sqrt(variance + eps)
    return a * scale.view(shape) + (beta - mean * scale).view(shape)


def layer_norm(a: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer normalization: a (..., D), gamma and beta (D,); moments over the last axis, for each token alone."""
    return standardize(a, (-1,), eps) * gamma + beta


def group_norm(a: Tensor, groups: int, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """Group normalization: a (N, C, H, W), gamma and beta (C,); moments over one group's channels, H and W.

    `groups=1` is layer normalization over (C, H, W) and `groups=C` is instance normalization.

    Raises:
        ValueError: `groups` does not divide C.
    """
    n, c, h, w = a.shape
    if c % groups:
        raise ValueError(f"{groups} groups do not divide {c} channels; choose a divisor of {c}")
    grouped = standardize(a.view(n, groups, c // groups, h, w), (2, 3, 4), eps)
    shape = (1, c, 1, 1)
    return grouped.view(n, c, h, w) * gamma.view(shape) + beta.view(shape)


def normalization_layer(kind: NormalizationKind, channels: int) -> nn.Module:
    """The torch module that normalizes (N, channels, H, W) in the chosen way.

    `layer` takes its moments over (C, H, W) with one gamma and beta per channel (a group normalization of one group), so that it
    works at every image size. `group` uses 32 groups, or the largest power of two below that divides the channels.

    Raises:
        ValueError: `kind` is none of batch, layer, group.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "layer":
        return nn.GroupNorm(1, channels)
    if kind == "group":
        groups = GROUPS
        while channels % groups:
            groups //= 2
        return nn.GroupNorm(groups, channels)
    raise ValueError(f"unknown normalization {kind!r}; choose batch, layer or group")
