import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.normalization import NormalizationKind
from models.architectures.resnet import (
    BasicBlock,
    Bottleneck,
    PaddingShortcut,
    ResNet,
    ResNetConfig,
    resnet_config,
)

_NARROW = ResNetConfig(depths=(2, 1, 1, 1), widths=(8, 8, 16, 16), classes=5)


def _without_memory(depth: int, classes: int) -> ResNet:
    """The network with names and shapes, and no weights behind them."""
    with torch.device("meta"):
        return ResNet(resnet_config(depth, classes=classes))


def _blocks(network: ResNet) -> list[BasicBlock | Bottleneck]:
    return [module for module in network.modules() if isinstance(module, (BasicBlock, Bottleneck))]


def _open_branches(network: ResNet) -> ResNet:
    """Sets the last gamma of each block to 1: the residual branches take part, as they do after some training."""
    for block in _blocks(network):
        nn.init.ones_(block.last_norm.get_parameter("weight"))
    return network


def _torchvision_resnet50() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's `resnet50().state_dict()`, written down from its structure."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{entry}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["conv1.weight"] = (64, 3, 7, 7)
    norm("bn1", 64)
    c_in = 64
    for stage, (depth, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        for i in range(depth):
            block = f"layer{stage}.{i}"
            shapes[f"{block}.conv1.weight"] = (width, c_in, 1, 1)
            norm(f"{block}.bn1", width)
            shapes[f"{block}.conv2.weight"] = (width, width, 3, 3)
            norm(f"{block}.bn2", width)
            shapes[f"{block}.conv3.weight"] = (4 * width, width, 1, 1)
            norm(f"{block}.bn3", 4 * width)
            if i == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * width, c_in, 1, 1)
                norm(f"{block}.downsample.1", 4 * width)
            c_in = 4 * width
    shapes["fc.weight"], shapes["fc.bias"] = (1000, 2048), (1000,)
    return shapes


def _cifar_parameters(n: int, classes: int) -> int:
    """Parameters of the 6n+2 layer network with parameter-free shortcuts: convolutions, gamma and beta, classifier."""
    total = 3 * 16 * 9 + 2 * 16
    c_in = 16
    for width in (16, 32, 64):
        total += c_in * width * 9 + (2 * n - 1) * width * width * 9 + 2 * n * 2 * width
        c_in = width
    return total + 64 * classes + classes


def test_resnet50_has_the_parameters_of_the_official_one() -> None:
    """25,557,032 parameters at 1000 classes; every name and shape of the 320 entries of its state is torchvision's.

    320 = 53 convolutions + 5 entries for each of 53 batch norms + weight and bias of the classifier.
    """
    network = _without_memory(50, 1000)
    actual = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert actual == _torchvision_resnet50()
    assert len(actual) == 53 + 5 * 53 + 2 == 320
    assert sum(p.numel() for p in network.parameters()) == 25_557_032


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv1.weight", (64, 3, 7, 7)),
        ("bn1.running_mean", (64,)),
        ("bn1.num_batches_tracked", ()),
        ("layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        ("layer1.0.downsample.1.running_var", (256,)),
        ("layer2.0.conv2.weight", (128, 128, 3, 3)),
        ("layer3.5.bn3.weight", (1024,)),
        ("layer4.2.conv3.weight", (2048, 512, 1, 1)),
        ("fc.weight", (1000, 2048)),
        ("fc.bias", (1000,)),
    ],
)
def test_well_known_names_of_resnet50(name: str, shape: tuple[int, ...]) -> None:
    """Names that appear in every published checkpoint are there, with the published shapes."""
    assert tuple(_without_memory(50, 1000).state_dict()[name].shape) == shape


def test_resnet50_has_53_normalizations_and_16_blocks() -> None:
    """53 batch norms: the stem, three in each of 16 blocks, four in the projections."""
    network = _without_memory(50, 1000)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 1 + 3 * 16 + 4 == 53
    assert len(_blocks(network)) == 16


@pytest.mark.parametrize(
    ("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)]
)
def test_parameters_of_the_imagenet_depths(depth: int, parameters: int) -> None:
    """Each published depth has the published number of parameters."""
    assert sum(p.numel() for p in _without_memory(depth, 1000).parameters()) == parameters


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_parameters_of_the_cifar_depths(depth: int, parameters: int) -> None:
    """6n+2 layers of widths 16, 32, 64 with parameter-free shortcuts (option A): 0.27 and 0.85 million, as published."""
    assert _cifar_parameters((depth - 2) // 6, 10) == parameters
    network = _without_memory(depth, 10)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in network.modules()) == depth


def test_a_plain_network_is_as_deep_and_adds_nothing() -> None:
    """`residual=False` keeps the layers of the main path and leaves out the shortcuts, so that the two can be compared."""
    with torch.device("meta"):
        plain = ResNet(resnet_config(56, classes=10, residual=False))
    assert sum(p.numel() for p in plain.parameters()) == _cifar_parameters(9, 10)
    assert all(block.downsample is None and not block.residual for block in _blocks(plain))


def test_the_stride_lies_in_the_3x3_convolution() -> None:
    """v1.5: in a bottleneck that halves the resolution the 1x1 convolutions have stride 1 and the 3x3 has stride 2."""
    network = _without_memory(50, 1000)
    for name in ("layer2.0", "layer3.0", "layer4.0"):
        block = network.get_submodule(name)
        assert isinstance(block, Bottleneck)
        assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


def test_resolution_halves_five_times() -> None:
    """224 pixels become 112 in the stem, 56 after the pool and 56, 28, 14, 7 after the stages."""
    network, x = _without_memory(50, 1000), torch.empty(1, 3, 224, 224, device="meta")
    x = network.bn1(network.conv1(x))
    assert x.shape == (1, 64, 112, 112)
    x = network.maxpool(x)
    for name, shape in zip(network.stages, ((256, 56), (512, 28), (1024, 14), (2048, 7)), strict=True):
        x = network.get_submodule(name)(x)
        assert x.shape == (1, shape[0], shape[1], shape[1])


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (33, 47), (128, 32)])
@pytest.mark.parametrize("normalization", ["batch", "group", "layer"])
def test_any_image_size_from_32_pixels(size: tuple[int, int], normalization: NormalizationKind) -> None:
    """Logits (N, classes) at 32 pixels, at odd sizes and where height and width differ, with every normalization."""
    torch.manual_seed(0)
    network = ResNet(ResNetConfig(depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), classes=5, normalization=normalization)).eval()
    with torch.no_grad():
        logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


@pytest.mark.parametrize("depth", [20, 56])
def test_cifar_networks_take_32_pixels(depth: int) -> None:
    """The CIFAR stem keeps the resolution: the stages end at 8 x 8."""
    network = _without_memory(depth, 10)
    x = network.maxpool(network.conv1(torch.empty(1, 3, 32, 32, device="meta")))
    assert x.shape == (1, 16, 32, 32)
    for name in network.stages:
        x = network.get_submodule(name)(x)
    assert x.shape == (1, 64, 8, 8)
    assert network(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_blocks_begin_as_identities_in_residual_networks_only() -> None:
    """The last gamma of each block is 0, every other is 1; in a plain network all are 1, or nothing would pass."""
    residual = ResNet(_NARROW)
    last = {id(block.last_norm) for block in _blocks(residual)}
    for module in residual.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(0.0 if id(module) in last else 1.0).all()
    plain = ResNet(resnet_config(20, classes=10, residual=False))
    assert all(module.weight.eq(1).all() for module in plain.modules() if isinstance(module, nn.BatchNorm2d))


def test_a_surplus_block_passes_its_input_on() -> None:
    """With gamma 0 a block without projection returns its input (which an activation made non-negative), bit for bit."""
    torch.manual_seed(0)
    for config in (_NARROW, resnet_config(20, classes=10)):
        block = ResNet(config).get_submodule("layer1.1").eval()
        x = torch.rand(2, config.widths[0] * (4 if config.block == "bottleneck" else 1), 6, 6)
        assert torch.equal(block(x), x)


def test_bottleneck_is_relu_of_branch_plus_shortcut() -> None:
    """relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1 x))))))) + bn(conv x)), computed apart, within 1e-5."""
    torch.manual_seed(0)
    network = _open_branches(ResNet(_NARROW)).eval()
    block = network.get_submodule("layer2.0")
    state = block.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])

    x = torch.randn(2, 32, 9, 8)
    out = F.relu(norm(F.conv2d(x, state["conv1.weight"]), "bn1"))
    out = F.relu(norm(F.conv2d(out, state["conv2.weight"], stride=2, padding=1), "bn2"))
    out = norm(F.conv2d(out, state["conv3.weight"]), "bn3")
    shortcut = norm(F.conv2d(x, state["downsample.0.weight"], stride=2), "downsample.1")
    with torch.no_grad():
        torch.testing.assert_close(block(x), F.relu(out + shortcut), atol=1e-5, rtol=1e-5)


def test_basic_block_is_relu_of_branch_plus_input() -> None:
    """relu(bn2(conv2(relu(bn1(conv1 x)))) + x) in training mode, computed apart, within 1e-5."""
    torch.manual_seed(0)
    block = _open_branches(ResNet(resnet_config(20, classes=10))).get_submodule("layer1.1")
    x = torch.randn(3, 16, 6, 6)
    out = F.relu(F.batch_norm(F.conv2d(x, block.get_parameter("conv1.weight"), padding=1), None, None, training=True))
    out = F.batch_norm(F.conv2d(out, block.get_parameter("conv2.weight"), padding=1), None, None, training=True)
    torch.testing.assert_close(block(x), F.relu(out + x), atol=1e-5, rtol=1e-5)


def test_padding_shortcut_subsamples_and_adds_zero_channels() -> None:
    """Every second pixel of the input, then channels of zeros: no parameter."""
    x = torch.randn(2, 3, 6, 5)
    y = PaddingShortcut(8, 2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert y[:, 3:].eq(0).all()


@pytest.mark.parametrize("normalization", ["group", "layer"])
def test_a_samples_answer_does_not_depend_on_its_batch(normalization: NormalizationKind) -> None:
    """Group and layer normalization see one sample at a time: alone or among others, in training mode, within 1e-5."""
    torch.manual_seed(0)
    config = ResNetConfig(depths=(1, 1, 1, 1), widths=(16, 16, 32, 32), classes=5, normalization=normalization)
    network = _open_branches(ResNet(config)).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    batch = torch.randn(4, 3, 40, 40) * torch.tensor([0.1, 1.0, 5.0, 1.0]).view(4, 1, 1, 1)
    with torch.no_grad():
        together = network(batch)
        alone = torch.cat([network(sample[None]) for sample in batch])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def test_with_batch_normalization_a_samples_answer_depends_on_its_batch() -> None:
    """The contrast: in training mode batch moments mix the samples; with running moments (eval mode) they no longer do."""
    torch.manual_seed(0)
    network = _open_branches(ResNet(_NARROW)).train()
    batch = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert (network(batch)[:2] - network(batch[:2])).abs().max() > 1e-2
        network.eval()
        torch.testing.assert_close(network(batch)[:2], network(batch[:2]), atol=1e-5, rtol=1e-5)


def test_an_unknown_depth_names_the_choices() -> None:
    """The error lists every depth that is defined."""
    with pytest.raises(ValueError, match=re.escape("depth 77 is defined; choose one of 18, 34, 50, 101, 152, 20, 56")):
        resnet_config(77, classes=10)


def test_an_unknown_normalization_names_the_choices() -> None:
    """The error reaches whoever builds the network."""
    with pytest.raises(ValueError, match="unknown normalization 'rms'; choose batch, layer or group"):
        ResNet(ResNetConfig(normalization="rms"))  # type: ignore[arg-type]


def _gradient_norms(network: ResNet, seed: int) -> list[float]:
    """Gradient norm of every convolution, from the stem on, for one batch of noise."""
    noise = torch.Generator().manual_seed(100 + seed)
    x, labels = torch.randn(16, 3, 32, 32, generator=noise), torch.randint(0, 10, (16,), generator=noise)
    F.cross_entropy(network(x), labels).backward()  # type: ignore[no-untyped-call]
    norms = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.grad is not None
            norms.append(module.weight.grad.norm().item())
    return norms


def _cifar(depth: int, *, residual: bool, seed: int) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(resnet_config(depth, classes=10, residual=residual))


@pytest.mark.parametrize("seed", [0, 1])
def test_residual_paths_keep_gradients_of_one_order(seed: int) -> None:
    """Over 56 layers the gradient of a plain network changes by orders of magnitude, that of a residual network does not.

    Measured, first convolution over last, all gammas 1, seeds 0 and 1: plain 6149 and 8647, residual 15.2 and 16.8. (Batch
    normalization keeps the plain network's activations alive, at the price of gradients that explode towards the input.)
    """
    plain = _gradient_norms(_cifar(56, residual=False, seed=seed), seed)
    residual = _gradient_norms(_open_branches(_cifar(56, residual=True, seed=seed)), seed)
    assert plain[0] / plain[-1] > 1000
    assert max(residual) / min(residual) < 60


@pytest.mark.parametrize("seed", [0, 1])
def test_depth_does_not_change_the_gradient_of_a_residual_networks_stem(seed: int) -> None:
    """From 20 to 56 layers the stem's gradient at initialization stays in a residual network and explodes in a plain one.

    Measured, 56 layers over 20, as initialized, seeds 0 and 1: residual 0.92 and 1.11, plain 644 and 674.
    """
    growth = {
        residual: _gradient_norms(_cifar(56, residual=residual, seed=seed), seed)[0]
        / _gradient_norms(_cifar(20, residual=residual, seed=seed), seed)[0]
        for residual in (False, True)
    }
    assert 0.5 < growth[True] < 2
    assert growth[False] > 100
