import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.normalization import (
    batch_norm,
    batch_norm_inference,
    group_norm,
    layer_norm,
    normalization_layer,
    standardize,
)

_EPSILONS = (1e-5, 1e-2)


def _images(offset: float = 0.7) -> Tensor:
    """float32 (4, 12, 5, 6) with a mean and a spread of their own in every channel."""
    torch.manual_seed(0)
    return torch.randn(4, 12, 5, 6) * torch.linspace(0.1, 3, 12).view(1, 12, 1, 1) + offset


def _affine(width: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(width), torch.randn(width)


@pytest.mark.parametrize("eps", _EPSILONS)
def test_batch_norm_is_torchs_in_training(eps: float) -> None:
    """Moments over N, H and W: within 1e-5 of torch's batch norm with batch statistics."""
    a, (gamma, beta) = _images(), _affine(12)
    expected = F.batch_norm(a, None, None, gamma, beta, training=True, eps=eps)
    torch.testing.assert_close(batch_norm(a, gamma, beta, eps), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eps", _EPSILONS)
def test_batch_norm_is_torchs_at_inference(eps: float) -> None:
    """With running moments it is affine per channel: within 1e-5 of torch's batch norm in eval mode."""
    a, (gamma, beta) = _images(), _affine(12)
    mean, variance = torch.linspace(-1, 1, 12), torch.linspace(0.2, 4, 12)
    expected = F.batch_norm(a, mean, variance, gamma, beta, training=False, eps=eps)
    torch.testing.assert_close(batch_norm_inference(a, mean, variance, gamma, beta, eps), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eps", _EPSILONS)
@pytest.mark.parametrize("shape", [(3, 12), (3, 7, 12), (2, 3, 4, 12)])
def test_layer_norm_is_torchs(shape: tuple[int, ...], eps: float) -> None:
    """Moments over the last axis, for any number of leading axes: within 1e-5 of torch's layer norm."""
    torch.manual_seed(2)
    a, (gamma, beta) = torch.randn(*shape) * 2 + 1, _affine(12)
    expected = F.layer_norm(a, (12,), gamma, beta, eps)
    torch.testing.assert_close(layer_norm(a, gamma, beta, eps), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("eps", _EPSILONS)
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_group_norm_is_torchs(groups: int, eps: float, layout: torch.memory_format) -> None:
    """Moments over one group's channels, H and W: within 1e-5 of torch's, for every divisor of C and both memory layouts."""
    a, (gamma, beta) = _images().contiguous(memory_format=layout), _affine(12)
    expected = F.group_norm(a, groups, gamma, beta, eps)
    torch.testing.assert_close(group_norm(a, groups, gamma, beta, eps), expected, atol=1e-5, rtol=1e-5)


def test_group_norm_has_layer_and_instance_norm_as_its_ends() -> None:
    """One group is layer norm over (C, H, W), a group for each channel is instance norm."""
    a, (ones, zeros) = _images(), (torch.ones(12), torch.zeros(12))
    torch.testing.assert_close(group_norm(a, 1, ones, zeros), F.layer_norm(a, a.shape[1:]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(group_norm(a, 12, ones, zeros), F.instance_norm(a), atol=1e-5, rtol=1e-5)


def test_group_norm_refuses_groups_that_do_not_divide_the_channels() -> None:
    """The error names both numbers."""
    with pytest.raises(ValueError, match="5 groups do not divide 12 channels"):
        group_norm(_images(), 5, *_affine(12))


@pytest.mark.parametrize("axes", [(0,), (1,), (-1,), (0, 2, 3), (1, 2, 3)])
def test_standardize_leaves_mean_0_and_population_variance_1(axes: tuple[int, ...]) -> None:
    """Whatever the axes, the moments over them become 0 and 1, where eps is negligible."""
    y = standardize(_images(), axes, eps=0.0)
    assert y.shape == _images().shape
    mean, variance = y.mean(axes), y.var(axes, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-5, rtol=0)


def test_a_constant_input_becomes_beta() -> None:
    """With no variance eps keeps the quotient finite: the result is beta, not NaN."""
    gamma, beta = _affine(12)
    constant = torch.full((2, 12, 3, 3), 5.0)
    torch.testing.assert_close(batch_norm(constant, gamma, beta), beta.view(1, 12, 1, 1).expand(2, 12, 3, 3))
    torch.testing.assert_close(group_norm(constant, 3, gamma, beta), beta.view(1, 12, 1, 1).expand(2, 12, 3, 3))
    torch.testing.assert_close(layer_norm(torch.full((2, 12), 5.0), gamma, beta), beta.expand(2, 12))


def test_the_layers_that_resnet_chooses_from() -> None:
    """`batch`, `layer` and `group` each give their torch module, with one gamma and beta for each channel."""
    batch, layer, group = normalization_layer("batch", 64), normalization_layer("layer", 64), normalization_layer("group", 64)
    assert isinstance(batch, nn.BatchNorm2d)
    assert isinstance(layer, nn.GroupNorm)
    assert isinstance(group, nn.GroupNorm)
    assert (layer.num_groups, group.num_groups) == (1, 32)
    for module in (batch, layer, group):
        assert module.get_parameter("weight").shape == module.get_parameter("bias").shape == (64,)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (48, 16), (24, 8), (16, 16), (7, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    """32 groups, or the largest power of two below that divides the channels."""
    module = normalization_layer("group", channels)
    assert isinstance(module, nn.GroupNorm)
    assert module.num_groups == groups


def test_an_unknown_normalization_names_the_choices() -> None:
    """A wrong name is answered with the right ones."""
    with pytest.raises(ValueError, match="unknown normalization 'instance'; choose batch, layer or group"):
        normalization_layer("instance", 8)  # type: ignore[arg-type]
