"""Networks of the literature: their sizes, and what is special about each."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from layerwise import Blocks, InputError, models
from layerwise.models.airbench import Whiten
from layerwise.models.resnet import ResidualBlock
from layerwise.models.vgg import VGG, VGG_B, VGG_C
from layerwise.models.vit import Patches, TokenMean


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _build(make: Callable[[], nn.Module]) -> nn.Module:
    """The network without memory or time spent on its weights."""
    with torch.device("meta"):
        return make()


def _ending(network: nn.Module, shape: tuple[int, ...] = (3, 32, 32)) -> tuple[int, ...]:
    """Shape of what the classifier gets."""
    seen: list[tuple[int, ...]] = []
    network.classifier.register_forward_pre_hook(lambda m, a: seen.append(tuple(a[0].shape[1:])))
    network.eval()(torch.empty(2, *shape, device="meta"))
    return seen[0]


# He et al. 2016, table 6.
@pytest.mark.parametrize(("layers", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85), (110, 1.7)])
def test_resnet_size(layers: int, millions: float) -> None:
    network = _build(getattr(models, f"resnet{layers}"))
    digits = 1 if layers == 110 else 2
    assert round(parameters(network) / 1e6, digits) == millions
    weights = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weights) == layers  # the shortcuts have none
    assert _ending(network) == (64, 8, 8)
    assert len(network) == 2 + 3 * (layers - 2) // 6


def test_resnet_size_exactly() -> None:
    """n = 3: stem, stages of 2n convolutions, BatchNorms, classifier."""
    convs = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert parameters(_build(models.resnet20)) == convs + norms + 64 * 10 + 10 == 269_722
    assert parameters(_build(models.resnet110)) == 1_727_962


def test_option_a_shortcut() -> None:
    """With the residual branch silenced, a block is ReLU of its shortcut: every second pixel, the
    old channels in the middle of zeros. Pixel by pixel."""
    block = ResidualBlock(3, 8, 2)
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 3, 6, 4)
    out = block(x)
    assert out.shape == (2, 8, 3, 2)
    wanted = torch.zeros(2, 8, 3, 2)
    for b in range(2):
        for c in range(3):
            for i in range(3):
                for j in range(2):
                    wanted[b, c + 2, i, j] = max(x[b, c, 2 * i, 2 * j].item(), 0.0)
    assert torch.equal(out, wanted)


def test_residual_block_adds() -> None:
    block = ResidualBlock(4, 4, 1).eval()
    x = torch.randn(2, 4, 5, 5)
    given = x.clone()
    h = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    assert torch.equal(block(x), (h + x).relu())
    assert torch.equal(x, given)


@pytest.mark.parametrize("size", [1, 5, 9, 33])
def test_resnet_takes_any_size(size: int) -> None:
    network = models.resnet20((1, size, size), 4, width=0.25)
    assert network.eval()(torch.randn(2, 1, size, size)).shape == (2, 4)


@pytest.mark.parametrize("width", [0.01, 0.3, 0.5, 2.0])
def test_resnet_width(width: float) -> None:
    network = _build(lambda: models.resnet20(width=width))
    assert [max(1, round(c * width)) for c in (16, 16, 32, 64)] == [
        network[i][0].out_channels if i == 0 else network[i].bn2.num_features for i in (0, 1, 4, 7)
    ]
    assert _ending(network)[0] == max(1, round(64 * width))


def _plans() -> dict[str, list[int | str]]:
    return {name: list(plan) for name, plan in {**VGG, **VGG_C, **VGG_B}.items()}


@pytest.mark.parametrize("name", _plans())
def test_vgg(name: str) -> None:
    """Layers as named, sizes by formula, resolution after the poolings."""
    plan = _plans()[name]
    network = _build(getattr(models, name))
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    channels = [c for c in plan if isinstance(c, int)]
    assert [c.out_channels for c in convs] == channels
    layers = int("".join(filter(str.isdigit, name)))
    linears = [m for m in network.modules() if isinstance(m, nn.Linear)]
    # The original has three linear layers; here one or two, and the b family counts those two.
    assert len(convs) == (layers - 2 if name.endswith("b") or name == "vgg8c" else layers - 3)
    side = 32 >> plan.count("M")
    assert side == {"c": 4, "b": 2}.get(name[-1], 1)
    size = sum(9 * a * b + 2 * b for a, b in zip([3, *channels[:-1]], channels, strict=True))
    features = channels[-1] * side * side
    if len(linears) == 2:
        hidden = linears[0].out_features
        assert hidden == (1024 if name.endswith("b") else 512)
        size += (features + 1) * hidden + (2 * hidden if name.endswith("b") else 0)
        features = hidden
    assert parameters(network) == size + (features + 1) * 10
    last_maps = _build(lambda: getattr(models, name)(hidden=None))
    assert _ending(last_maps) == (channels[-1], side, side)
    # A pooling belongs to the layer before it: blocks end after it.
    poolings = [any(isinstance(m, nn.MaxPool2d) for m in layer) for layer in network[: len(convs)]]
    assert poolings == [b == "M" for a, b in zip(plan, [*plan[1:], None], strict=True) if a != "M"]


def test_vgg_counts_known() -> None:
    """VGG11 with BatchNorm and one linear layer on CIFAR-10: 9.2M weights in convolutions."""
    convs = sum(m.weight.numel() for m in _build(models.vgg11).modules() if type(m) is nn.Conv2d)
    assert convs == 9_217_728
    convs = sum(m.weight.numel() for m in _build(models.vgg16).modules() if type(m) is nn.Conv2d)
    assert convs == 14_710_464


@pytest.mark.parametrize("width", [1 / 64, 0.5, 1.5])
def test_vgg_width(width: float) -> None:
    network = _build(lambda: models.vgg8b(width=width))
    convs = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert convs == [round(c * width) for c in (128, 256, 256, 512, 512, 512)]
    assert network.fc[1].out_features == 1024


@pytest.mark.parametrize(("width", "millions"), [(1, 12), (2, 42), (3, 91)])
def test_vgg11b_has_the_published_size(width: int, millions: int) -> None:
    """Nøkland & Eidnes 2019: VGG11B, VGG11B(2x), VGG11B(3x)."""
    with torch.device("meta"):
        network = models.vgg11b(width=width)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def test_vgg_dropout() -> None:
    network = models.vgg8c((3, 8, 8), 4, width=1 / 64, hidden=640, dropout=0.3)
    drops = [m for m in network.modules() if isinstance(m, nn.Dropout2d)]
    assert len(drops) == 6
    assert isinstance(network.fc[-1], nn.Dropout)
    assert {m.p for m in drops} == {0.3} == {network.fc[-1].p}
    plain = models.vgg8c((3, 8, 8), 4, width=1 / 64)
    assert not [m for m in plain.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]


@pytest.mark.parametrize("shape", [(3, 31, 31), (3, 31, 64), (1, 28, 28)])
def test_vgg_of_too_small_images(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"vgg11\(shape=.*: 5 poolings .* at least 32x32") as e:
        models.vgg11(shape)
    assert "\n" not in str(e.value)


def test_odd_images() -> None:
    """28x28 halves to 14, 7, 3."""
    network = _build(lambda: models.vgg11c((1, 28, 28), hidden=None))
    assert _ending(network, (1, 28, 28)) == (512, 3, 3)
    wide = _build(lambda: models.vgg8b((1, 16, 40)))
    assert wide.fc[1].in_features == 512 * 1 * 2


def test_basic_cnn() -> None:
    network = _build(models.basic_cnn)
    size = 25 * (3 * 128 + 2 * 128 * 128) + 3 * 2 * 128
    size += (128 * 16 + 1) * 256 + 257 * 10
    assert parameters(network) == size
    assert _ending(network) == (128, 4, 4)
    with pytest.raises(InputError, match=r"basic_cnn\(shape=\(1, 7, 9\)\): 3 poolings"):
        models.basic_cnn((1, 7, 9))


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_mlp(layers: int, batch_norm: bool) -> None:
    network = models.mlp((1, 4, 5), 3, layers, 7, batch_norm, dropout=0.5)
    sizes = [20, *[7] * layers]
    inner = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    assert parameters(network) == inner + (sizes[-1] + 1) * 3 + batch_norm * layers * 2 * 7
    assert len([m for m in network.modules() if isinstance(m, nn.Dropout)]) == layers
    x = torch.randn(6, 1, 4, 5)
    h = x.flatten(1)
    for layer in network.eval()[:-1]:
        (linear,) = [m for m in layer if isinstance(m, nn.Linear)]
        h = linear(h)
        for norm in [m for m in layer if isinstance(m, nn.BatchNorm1d)]:
            h = norm(h)
        h = h.relu()
    assert torch.equal(network(x), network[-1][-1](h))


def test_mlp_without_relus_is_linear() -> None:
    """f(x) - f(0) of a sum is the sum; a layer of its own is left for every hidden layer."""
    network = models.mlp((1, 1, 4), 3, layers=2, width=5, linear=True).double()
    x, y, zero = (*torch.randn(2, 1, 1, 1, 4).double(), torch.zeros(1, 1, 1, 4).double())
    assert [len(layer) for layer in network] == [2, 1, 1]
    torch.testing.assert_close(network(x + y) + network(zero), network(x) + network(y))


def test_vit_size() -> None:
    """Per layer: 4 D^2 + 4 D of attention, 8 D^2 + 5 D of the MLP, 4 D of two norms."""
    d, patch, tokens = 256, 4, 64
    layer = 12 * d * d + 13 * d
    ends = (3 * patch**2 + 1) * d + tokens * d + 2 * d + (d + 1) * 10
    assert parameters(_build(models.vit)) == 8 * layer + ends


def test_patches() -> None:
    """One token per patch, row by row; the position is added."""
    patches = Patches((2, 4, 6), 2, 5)
    x = torch.randn(3, 2, 4, 6)
    tokens = patches(x)
    assert tokens.shape == (3, 6, 5)
    weight = patches.project.weight.flatten(1)
    for k in range(6):
        i, j = divmod(k, 3)
        patch = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1)
        wanted = patch @ weight.T + patches.project.bias + patches.position[0, k]
        torch.testing.assert_close(tokens[:, k], wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(TokenMean()(tokens), tokens.mean(1))


@pytest.mark.parametrize("shape", [(3, 30, 32), (3, 32, 30)])
def test_vit_patch(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"vit\(patch=4\): \d+x\d+ images do not divide") as e:
        models.vit(shape)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("options", [{"patch": 0}, {"heads": 0}, {"width": 10, "heads": 4}])
def test_vit_sizes(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"vit\(patch=\d+, width=\d+, heads=\d+\): give") as e:
        models.vit(**options)  # type: ignore[arg-type]
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in models.__all__
        if n not in ("gate_tree", "gpt", "lstm", "timm", "torchvision", "transformers")
    ],
)
def test_every_network_is_a_chain_of_blocks(name: str) -> None:
    """Each module of the chain is a block, and the last gives class scores."""
    network = _build(lambda: getattr(models, name)(num_classes=7))
    example = torch.empty(2, 3, 32, 32, device="meta")
    blocks = Blocks(network, example=example, names=[n for n, _ in network.named_children()])
    assert blocks.shapes[-1] == (7,)
    assert blocks.names[-1] == "classifier"
    grey = _build(lambda: getattr(models, name)((1, 32, 32), 5))
    assert grey.eval()(torch.empty(2, 1, 32, 32, device="meta")).shape == (2, 5)


def test_torchvision() -> None:
    network = _build(lambda: models.torchvision((3, 32, 32), 7, "resnet18"))
    assert parameters(network) == 11_689_512 - 993 * 513  # its 1000 classes become 7
    with pytest.raises(InputError, match=r"torchvision\(arch='resnet19'\).*did you mean 'resnet1"):
        models.torchvision(arch="resnet19")
    with pytest.raises(InputError, match=r"torchvision\(arch='q'\): no such model; there is: "):
        models.torchvision(arch="q")
    with pytest.raises(InputError, match=r"torchvision\(shape=\(1, 28, 28\)\).*3 channels"):
        models.torchvision((1, 28, 28))


def test_torchvision_networks_that_know_their_image_size() -> None:
    network = _build(lambda: models.torchvision((3, 64, 64), 7, "vit_b_16"))
    assert network.encoder.pos_embedding.shape[1] == 1 + 16


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["googlenet", "inception_v3", "maxvit_t", "swin_t"])
def test_torchvision_gives_one_tensor(arch: str) -> None:
    network = models.torchvision((3, 224, 224), 7, arch)
    out = network(torch.randn(2, 3, 224, 224))
    assert isinstance(out, Tensor)
    assert out.shape == (2, 7)


def test_timm() -> None:
    pytest.importorskip("timm")
    network = models.timm((1, 28, 28), 7, "resnet18")
    assert network(torch.randn(2, 1, 28, 28)).shape == (2, 7)
    sized = models.timm((3, 64, 64), 7, "vit_tiny_patch16_224")
    assert sized(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(InputError, match=r"timm\(arch='resnet19'\).*did you mean '"):
        models.timm(arch="resnet19")


def test_timm_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InputError, match=r"timm is not installed; pip install 'layerwise\[timm\]'"):
        models.timm()


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_basic_cnn_without_its_first_layers(skip: int) -> None:
    """The layers that stay are as before, but for the first one's input channels."""
    whole, part = _build(models.basic_cnn), _build(lambda: models.basic_cnn(skip=skip))
    left_out = [f"conv{i + 1}" for i in range(skip)]
    shapes = {n: p.shape for n, p in whole.named_parameters() if n.split(".")[0] not in left_out}
    assert {n: p.shape for n, p in part.named_parameters()} | {
        f"conv{skip + 1}.0.weight": None
    } == (shapes | {f"conv{skip + 1}.0.weight": None})
    assert part.get_submodule(f"conv{skip + 1}")[0].in_channels == 3
    assert _ending(part) == (128, 4, 4)
    if skip:
        assert part.pool.kernel_size == 2**skip


def test_vgg_without_its_first_layers() -> None:
    """vgg11c from its last convolution on: the image at 8x8, 512 channels, the hidden layer."""
    part = _build(lambda: models.vgg11c(skip=7))
    assert [name for name, _ in part.named_children()] == ["pool", "conv8", "fc", "classifier"]
    assert part.pool.kernel_size == 4
    assert part.conv8[0].weight.shape == (512, 3, 3, 3)
    assert part.fc[1].in_features == 512 * 4 * 4
    assert [n for n, _ in _build(lambda: models.vgg11c(skip=2)).named_children()][:2] == [
        "pool",
        "conv3",
    ]
    assert [type(m) for m in part.fc] == [nn.Flatten, nn.Linear, nn.ReLU]  # without BatchNorm


def test_some_convolution_must_stay() -> None:
    with pytest.raises(InputError, match=r"vgg11c\(skip=8\): it has 8 convolutions"):
        models.vgg11c(skip=8)
    with pytest.raises(InputError, match=r"basic_cnn\(skip=3\)"):
        models.basic_cnn(skip=3)


@pytest.mark.parametrize(
    ("patch", "stride", "grid"), [(8, None, (5, 7)), (16, 8, (2, 3)), (8, 8, (3, 4))]
)
def test_patches_are_encoded_by_themselves(patch, stride, grid):
    """Against the same layers on one patch at a time; and no patch changes another's output."""
    network = models.basic_cnn(
        (3, 24, 32), 5, channels=4, kernel_size=3, patch=patch, stride=stride
    )
    network.eval()
    x = torch.randn(2, 3, 24, 32)
    convolutions = network[:4]
    h = convolutions(x)
    side, step = patch // 8, stride or patch // 2
    assert h.shape == (2, 4, grid[0] * side, grid[1] * side)
    layers = torch.nn.Sequential(*(part.layer for part in network[1:4]))
    for r in range(grid[0]):
        for c in range(grid[1]):
            one = x[:, :, r * step : r * step + patch, c * step : c * step + patch]
            got = h[:, :, r * side : (r + 1) * side, c * side : (c + 1) * side]
            torch.testing.assert_close(got, layers(one), rtol=1e-5, atol=1e-6)
    assert network(x).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patch": 12}, "give a multiple of 8"),
        ({"patch": 40}, "a patch of at most the image's 32x32"),
        ({"patch": 8, "stride": 9}, "a stride from 1 to the patch's 8"),
        ({"stride": 4}, "there are no patches"),
    ],
)
def test_patches_that_cannot_be(options, said):
    with pytest.raises(InputError, match=said) as error:
        models.basic_cnn(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [("basic_cnn", {"channels": 4}), ("vgg11c", {"width": 0.05}), ("resnet20", {"width": 0.25})],
)
def test_circular_padding(name: str, options: dict[str, float]) -> None:
    """With circular padding an image shifted by the stride of all layers gives shifted maps; zeros
    beyond the edge do not."""
    x = torch.randn(1, 3, 32, 32)
    last = {"basic_cnn": 3, "vgg11c": 8, "resnet20": 10}[name]  # modules before the classifier
    for padding in ("circular", "zeros"):
        network = getattr(models, name)(padding_mode=padding, **options).eval()[:last].double()
        maps, shifted = network(x.double()), network(x.double().roll((8, 16), (2, 3)))
        by = 8 * maps.shape[-1] // 32
        same = torch.allclose(shifted, maps.roll((by, 2 * by), (2, 3)), atol=1e-12)
        assert same == (padding == "circular")


def test_padding_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"vgg11c\(padding_mode='reflekt'\)"):
        models.vgg11c(padding_mode="reflekt")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"3 pixels beyond the edge of maps of 2; .* at most 5"):
        models.basic_cnn((3, 8, 8), kernel_size=7, padding_mode="circular")
    models.basic_cnn((3, 8, 8), 10, 4, kernel_size=5, padding_mode="circular")(
        torch.randn(2, 3, 8, 8)
    )


# Jordan 2024 (arXiv:2404.00498): filters 24 x 3 x 2 x 2 with a bias, 24-64-64-256-256-256-256, each
# BatchNorm a bias, 2560 weights of the classifier.
def test_airbench_has_the_published_parameters() -> None:
    network = models.airbench()
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained == 24 + convolutions + 2 * (64 + 256 + 256) + 2560 == 1_971_352
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_whitened_patches_have_the_identity_as_covariance() -> None:
    mixed = torch.randn(64, 5, 9, 9) @ torch.randn(9, 9)  # neighbours in a row are correlated
    layer = Whiten(5, kernel_size=2, eps=0.0)
    layer.fit(mixed)
    with torch.no_grad():
        layer.bias.zero_()
        outputs = layer(mixed).movedim(1, -1).flatten(0, 2)
    assert torch.equal(outputs[:, 20:], -outputs[:, :20])
    covariance = outputs[:, :20].T @ outputs[:, :20] / len(outputs)
    torch.testing.assert_close(covariance, torch.eye(20), atol=1e-3, rtol=0)


def test_airbench_convolutions_start_as_the_identity() -> None:
    layer = models.airbench(width=0.5).conv3[0]  # 32 -> 128 channels
    x = torch.randn(2, 32, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[:, :32], x)


def test_small_images_are_refused_by_airbench() -> None:
    with pytest.raises(InputError, match="25x25"):
        models.airbench(shape=(3, 24, 32))
