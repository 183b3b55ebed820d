"""Auxiliary networks: what they compute, how large they are, what they refuse."""

from __future__ import annotations

import copy
import math

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, InputError, heads, rules
from layerwise.blocks import ChannelsLastShape
from layerwise.heads import Head

CLASSES = (4,)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _last(head: nn.Module) -> nn.Linear:
    *_, last = (m for m in head.modules() if isinstance(m, nn.Linear))
    return last


def _linear(head: nn.Module) -> tuple[Tensor, Tensor]:
    (linear,) = [m for m in head.modules() if isinstance(m, nn.Linear)]
    return linear.weight, linear.bias


def test_linear_on_a_vector() -> None:
    """[[1, 2], [3, 4]] (1, -1) + (10, 20) = (-1, -1) + (10, 20)."""
    head = heads.Linear()((2,), (2,))
    weight, bias = _linear(head)
    weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    bias.data = torch.tensor([10.0, 20.0])
    assert head(torch.tensor([[1.0, -1.0]])).tolist() == [[9.0, 19.0]]


def test_linear_keeps_every_position() -> None:
    h = torch.randn(5, 3, 4, 6)
    head = heads.Linear(pool=None)((3, 4, 6), CLASSES)
    assert torch.equal(head(h), F.linear(h.reshape(5, 72), *_linear(head)))


def test_a_fixed_head_stays_as_it_was_drawn() -> None:
    """Blocks get the gradient that a learning head with the same weights gives, bit for bit; the
    head gets none, and weight decay does not reach it."""
    case = networks.cnn()
    learning = rules.DGL(copy.deepcopy(case.blocks), head=heads.Linear())
    fixed = rules.DGL(case.blocks, head=heads.Linear(fixed=True))
    fixed.load_state_dict(learning.state_dict())
    optimizer = torch.optim.AdamW(fixed.parameters(), lr=0.1, weight_decay=0.5)
    drawn = copy.deepcopy(fixed.objectives.state_dict())
    learning.backward(case.x, case.y)
    for step in range(3):
        optimizer.zero_grad()
        fixed.backward(case.x, case.y)
        if step == 0:
            networks.assert_same(networks.grads(fixed.blocks), networks.grads(learning.blocks))
        optimizer.step()
    assert drawn
    for name, weight in fixed.objectives.state_dict().items():
        assert torch.equal(weight, drawn[name]), name
    assert all(p.grad is None for p in fixed.objectives.parameters())
    assert not torch.equal(case.blocks[0][0][0].weight, learning.blocks[0][0][0].weight)


def test_a_fixed_head_by_hand() -> None:
    """h = W x = 2 * 1, scores (3 h, 0), y = 1: p_0 = 1 / (1 + e^-6), dL/dW = 3 p_0 x."""
    parts = [nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 2).double()]
    rule = rules.DGL(
        Blocks(parts, example=torch.ones(1, 1).double()), head=heads.Linear(fixed=True)
    )
    weight, bias = _linear(rule.objectives[0])
    weight.data[:], bias.data[:] = torch.tensor([[3.0], [0.0]]), 0
    parts[0].weight.data[:] = 2
    rule.backward(torch.ones(1, 1).double(), torch.tensor([1]))
    assert parts[0].weight.grad.item() == pytest.approx(3 / (1 + math.exp(-6)), abs=1e-14)


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_linear_pools_feature_maps(pool: int) -> None:
    h = torch.randn(5, 3, 7, 8)
    head = heads.Linear(pool=pool)((3, 7, 8), CLASSES)
    pooled = F.adaptive_avg_pool2d(h, pool).flatten(1)
    assert torch.equal(head(h), F.linear(pooled, *_linear(head)))


def test_pooling_by_hand() -> None:
    """4x4 maps become 2x2 maps: the means of the quarters."""
    h = torch.arange(16.0).reshape(1, 1, 4, 4)
    head = heads.Linear(pool=2)((1, 4, 4), (4,))
    weight, bias = _linear(head)
    weight.data, bias.data = torch.eye(4), torch.zeros(4)
    assert head(h).tolist() == [[2.5, 4.5, 10.5, 12.5]]


def test_linear_pools_tokens() -> None:
    """Four tokens become two: the means of neighbours, for each feature."""
    h = torch.tensor([[[0.0, 10.0], [2.0, 20.0], [4.0, 30.0], [6.0, 40.0]]])  # (1, T=4, D=2)
    head = heads.Linear(pool=2)((4, 2), (4,))
    weight, bias = _linear(head)
    weight.data, bias.data = torch.eye(4), torch.zeros(4)
    assert sorted(head(h).flatten().tolist()) == [1.0, 5.0, 15.0, 35.0]
    kept = heads.Linear(pool=None)((4, 2), CLASSES)
    assert torch.equal(kept(h), F.linear(h.flatten(1), *_linear(kept)))


def test_tokens_of_any_number() -> None:
    head = heads.MLP(pool=3)((4, 2), CLASSES)
    for tokens in (1, 2, 3, 9):
        assert head(torch.randn(2, tokens, 2)).shape == (2, 4)


@pytest.mark.parametrize(
    "head", [heads.Linear(), heads.MLP(width=5), heads.Conv(), heads.MLPSR()], ids=lambda h: str(h)
)
def test_channels_last_networks(head: Head) -> None:
    """The head equals the one for (C, H, W)."""
    h = torch.randn(5, 3, 6, 8)
    last = head(ChannelsLastShape((6, 8, 3)), CLASSES)
    first = head((3, 6, 8), CLASSES)
    assert parameters(last) == parameters(first)
    for p, q in zip(last.parameters(), first.parameters(), strict=True):
        p.data = q.data.clone()
    torch.testing.assert_close(last(h.permute(0, 2, 3, 1)), first(h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 8])
@pytest.mark.parametrize(
    ("in_shape", "pool", "features"),
    [((6,), 2, 6), ((3, 8, 8), 2, 12), ((3, 8, 8), None, 192), ((3, 1, 5), 2, 6), ((9, 5), 4, 20)],
)
def test_mlp_size(
    in_shape: tuple[int, ...], pool: int | None, features: int, layers: int, width: int
) -> None:
    head = heads.MLP(layers, width, pool)(in_shape, CLASSES)
    inner = (features + 1) * width + (layers - 1) * (width + 1) * width
    assert parameters(head) == inner + (width + 1) * 4
    assert head(torch.randn(2, *in_shape)).shape == (2, 4)


def test_mlp_value() -> None:
    head = heads.MLP(layers=2, width=5)((3,), CLASSES)
    a, b, c = [m for m in head if isinstance(m, nn.Linear)]
    h = torch.randn(6, 3)
    assert torch.equal(head(h), c(b(a(h).clamp(min=0)).clamp(min=0)))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("channels", [None, 5])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("reduce", [None, 3])
@pytest.mark.parametrize("pool", [None, 2])
@pytest.mark.parametrize("hidden", [None, 7])
def test_conv_size(
    layers: int,
    channels: int | None,
    kernel_size: int,
    reduce: int | None,
    pool: int | None,
    hidden: int | None,
) -> None:
    head = heads.Conv(layers, channels, kernel_size, reduce, pool, hidden)((2, 8, 6), CLASSES)
    out = channels or 2
    convs = kernel_size**2 * (2 * out + (layers - 1) * out * out) + layers * 2 * out
    side = pool or reduce
    features = out * (side * side if side else 8 * 6)
    last = (features + 1) * 4 if hidden is None else (features + 1) * hidden + (hidden + 1) * 4
    assert parameters(head) == convs + last
    assert head(torch.randn(2, 2, 8, 6)).shape == (2, 4)


def test_conv_value() -> None:
    h = torch.randn(5, 3, 8, 8)
    head = heads.Conv(reduce=4, pool=2, hidden=6)((3, 8, 8), CLASSES)
    (conv,) = [m for m in head if isinstance(m, nn.Conv2d)]
    hidden, last = [m for m in head if isinstance(m, nn.Linear)]
    z = F.conv2d(F.avg_pool2d(h, 2), conv.weight, padding=1)
    z = F.batch_norm(z, None, None, training=True).relu()
    z = F.avg_pool2d(z, 2).flatten(1)
    torch.testing.assert_close(head(h), last(hidden(z).relu()))


def test_conv_of_half_the_resolution_and_twice_the_channels() -> None:
    """8x6 maps with 2 channels become 4x3 with 4, then 2x2 with 8; `channels` 5 gives 5 and 10."""
    h = torch.randn(5, 2, 8, 6)
    for channels, wanted in ((None, [4, 8]), (5, [5, 10])):
        head = heads.Conv(layers=2, channels=channels, stride=2, widen=2, pool=None)(
            (2, 8, 6), CLASSES
        )
        convs = [m for m in head if isinstance(m, nn.Conv2d)]
        assert [conv.out_channels for conv in convs] == wanted
        z = h
        for conv in convs:
            z = F.conv2d(z, conv.weight, stride=2, padding=1)
            z = F.batch_norm(z, None, None, training=True).relu()
        assert z.shape[2:] == (2, 2)
        torch.testing.assert_close(head(h), head[-1](z.flatten(1)))


def test_conv_strides_over_one_position_under_autocast() -> None:
    head = heads.Conv(layers=2, stride=2, widen=2)((64, 1, 1), CLASSES)
    for _ in range(10):
        with torch.autocast("cpu", torch.bfloat16):
            assert head(torch.randn(128, 64, 1, 1)).isfinite().all()


@pytest.mark.parametrize("convs", [1, 3])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("width", [None, 7])
@pytest.mark.parametrize(("size", "side"), [(16, 2), (32, 2), (5, 2), (4, 1), (1, 1)])
def test_mlp_sr_size(convs: int, layers: int, width: int | None, size: int, side: int) -> None:
    channels = 3
    head = heads.MLPSR(convs, layers, width)((channels, size, size), CLASSES)
    features = channels * side * side
    units = width or features
    inner = convs * (channels**2 + 2 * channels)
    inner += (features + 1) * units + (layers - 1) * (units + 1) * units + layers * 2 * units
    assert parameters(head) == inner + (units + 1) * 4
    assert head(torch.randn(2, channels, size, size)).shape == (2, 4)


def test_mlp_sr_value() -> None:
    """The paper's order: a quarter of the resolution, 1x1 convolutions, 2x2, MLP."""
    h = torch.randn(5, 3, 16, 16)
    head = heads.MLPSR(convs=2, layers=1)((3, 16, 16), CLASSES)
    z = F.avg_pool2d(h, 4)
    for conv in [m for m in head if isinstance(m, nn.Conv2d)]:
        z = torch.einsum("bchw,dc->bdhw", z, conv.weight[:, :, 0, 0])
        z = F.batch_norm(z, None, None, training=True).relu()
    z = F.avg_pool2d(z, 2).flatten(1)
    hidden, last = [m for m in head if isinstance(m, nn.Linear)]
    assert hidden.out_features == 4 * 3
    z = F.batch_norm(hidden(z), None, None, training=True).relu()
    torch.testing.assert_close(head(h), last(z), rtol=1e-4, atol=1e-5)


def test_mlp_sr_is_light() -> None:
    """On 32x32 maps of 128 channels, it costs far less than the block's own convolution."""

    def conv_flops(module: nn.Module, h: Tensor) -> int:
        flops = 0
        for m in module:
            if isinstance(m, nn.Conv2d | nn.Linear):
                flops += m.weight.numel() * (h.shape[-1] * h.shape[-2] if h.dim() == 4 else 1)
            h = m(h)
        return flops

    h = torch.randn(2, 128, 32, 32)
    own = conv_flops(nn.Sequential(nn.Conv2d(128, 128, 3, padding=1)), h)
    assert conv_flops(heads.MLPSR()((128, 32, 32), (10,)), h) < 0.05 * own


@settings(max_examples=40, deadline=None)
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 6)),
        st.tuples(st.integers(1, 6), st.integers(1, 6)),
        st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    ),
    pool=st.one_of(st.none(), st.integers(1, 5)),
    head=st.sampled_from([heads.Linear, heads.MLP, heads.Conv, heads.MLPSR]),
)
def test_any_shape(shape: tuple[int, ...], pool: int | None, head: type[Head]) -> None:
    """Maps that are smaller than the pooling, not square, or one pixel also give scores."""
    if head in (heads.Conv, heads.MLPSR) and len(shape) == 2:  # tokens
        with pytest.raises(InputError):
            head()(shape, CLASSES)
        return
    made = head() if head is heads.MLPSR else head(pool=pool)
    h = torch.randn(2, *shape)
    network = made(shape, CLASSES)
    assert network(h).shape == (2, 4)
    network(h).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_airbench_by_hand() -> None:
    """Convolutions start as the identity; in eval mode BatchNorm does nothing yet."""
    head = heads.Airbench(layers=1, channels=3)((3, 4, 6), CLASSES).eval()
    h = torch.randn(2, 3, 4, 6)
    pooled = F.gelu(F.max_pool2d(h, 2)).amax((2, 3))
    linear = head[-1]
    assert linear.bias is None
    torch.testing.assert_close(head(h), pooled @ linear.weight.T, atol=1e-5, rtol=1e-5)


def test_airbench_halves_large_maps() -> None:
    """9x9 is halved before the convolutions, to 4x4, and after the first one. 3x3 stays."""
    sizes = []
    for side in (9, 8, 3):
        head = heads.Airbench(channels=4)((3, side, side), CLASSES)
        for m in head.modules():
            if isinstance(m, nn.Conv2d):
                m.register_forward_hook(lambda _, __, out: sizes.append(out.shape[-1]))
        head(torch.randn(2, 3, side, side))
    assert sizes == [4, 2, 8, 4, 3, 3]
    assert parameters(heads.Airbench()((32, 9, 9), CLASSES)) == (
        9 * 128 * (32 + 128) + 2 * 2 * 128 + 4 * 128
    )


def test_airbench_of_a_vector_is_a_small_linear_layer() -> None:
    torch.manual_seed(0)
    (linear,) = heads.Airbench()((400,), (50,))
    assert linear.weight.std().item() == pytest.approx(1 / 400, rel=0.03)
    with pytest.raises(InputError, match=r"heads.Airbench: a block gives \(5, 6\)"):
        heads.Airbench()((5, 6), CLASSES)


def test_per_token() -> None:
    """If the network gives (T, V), each token is classified by itself, without pooling."""
    h = torch.randn(5, 7, 6)
    head = heads.Linear()((7, 6), (7, 11))
    assert torch.equal(head(h), F.linear(h, *_linear(head)))
    deep = heads.MLP(width=4)((7, 6), (7, 11))
    one = deep(h[:, 3:4])
    torch.testing.assert_close(deep(h)[:, 3:4], one)
    assert parameters(deep) == 7 * 4 + 5 * 11


@pytest.mark.parametrize(
    "make",
    [
        lambda: heads.Linear(pool=0),
        lambda: heads.MLP(layers=0),
        lambda: heads.MLP(width=0),
        lambda: heads.MLP(pool=-1),
        lambda: heads.Conv(layers=0),
        lambda: heads.Conv(channels=0),
        lambda: heads.Conv(kernel_size=0),
        lambda: heads.Conv(reduce=0),
        lambda: heads.Conv(pool=0),
        lambda: heads.Conv(hidden=0),
        lambda: heads.Conv(stride=0),
        lambda: heads.Conv(widen=0),
        lambda: heads.MLPSR(convs=0),
        lambda: heads.MLPSR(layers=0),
        lambda: heads.MLPSR(width=0),
    ],
)
def test_sizes_below_one(make: object) -> None:
    with pytest.raises(InputError, match=r"^heads\.\w+\(\w+=-?\d\): give at least 1$"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("kernel_size", [2, 4])
def test_even_kernels(kernel_size: int) -> None:
    with pytest.raises(InputError, match=rf"heads\.Conv\(kernel_size={kernel_size}\).*odd"):
        heads.Conv(kernel_size=kernel_size)


@pytest.mark.parametrize("head", [heads.Conv(), heads.MLPSR()])
@pytest.mark.parametrize("shape", [(7, 6), (3, 2, 4, 4), ()])
def test_feature_maps_are_needed(head: Head, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"not feature maps.*heads\.Linear and heads\.MLP") as e:
        head(shape, CLASSES)
    assert "\n" not in str(e.value)
    assert str(shape) in str(e.value)


def test_on_a_vector_what_follows_the_convolutions_remains() -> None:
    classes = CLASSES[-1]
    assert [type(m) for m in heads.Conv()((6,), CLASSES)] == [nn.Linear]
    hidden = heads.Conv(hidden=5)((6,), CLASSES)
    assert [tuple(p.shape) for p in hidden.parameters()] == [(5, 6), (5,), (classes, 5), (classes,)]
    layer = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(m) for m in heads.MLPSR()((6,), CLASSES)] == [*layer, *layer, nn.Linear]
    assert heads.MLPSR(width=4)((6,), CLASSES)[0].weight.shape == (4, 6)


@pytest.mark.parametrize("head", [heads.Linear(), heads.MLP()])
@pytest.mark.parametrize("shape", [(3, 2, 2, 4, 4), ()])
def test_shapes_without_a_reading(head: Head, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"not feature maps"):
        head(shape, CLASSES)


@pytest.mark.parametrize(
    ("head", "out_shape"),
    [
        *[(head, (4, 8, 8)) for head in (heads.Conv(), heads.MLPSR())],
        *[(head, ()) for head in (heads.Linear(), heads.MLP(), heads.Conv(), heads.MLPSR())],
    ],
)
def test_outputs_without_a_reading(head: Head, out_shape: tuple[int, ...]) -> None:
    """Convolutional heads refuse (C, H, W), and every recipe refuses one number per sample."""
    with pytest.raises(InputError, match=r"predicts one label per sample") as e:
        head((3, 8, 8), out_shape)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("head", [heads.Linear(), heads.MLP()])
def test_labels_per_token_need_tokens(head: Head) -> None:
    for shape in ((6,), (3, 8, 8)):
        with pytest.raises(InputError, match=r"one label per token.*not \(tokens, features\)"):
            head(shape, (7, 11))


@pytest.mark.parametrize("head", [heads.Conv(), heads.MLPSR()])
def test_labels_per_token_on_maps(head: Head) -> None:
    with pytest.raises(InputError, match=r"predicts one label per sample"):
        head((7, 6), (7, 11))


def test_recipes_are_values() -> None:
    assert heads.MLP(width=3) == heads.MLP(width=3) != heads.MLP(width=4)
    with pytest.raises(AttributeError):
        heads.MLP().width = 5  # type: ignore[misc]
    first, second = heads.Linear()((3,), CLASSES), heads.Linear()((3,), CLASSES)
    assert not torch.equal(_last(first).weight, _last(second).weight)


def test_any_function_is_a_head() -> None:
    def bilinear(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(in_shape[0], out_shape[-1], bias=False))

    parts = [nn.Linear(6, 5), nn.Linear(5, 3)]
    x, y = torch.randn(4, 6), torch.randint(0, 3, (4,))
    rule = rules.DGL(Blocks(parts, example=x), head=bilinear)  # type: ignore[arg-type]
    assert parameters(rule.objectives[0]) == 15
    rule.backward(x, y)
    assert all(p.grad is not None for p in rule.parameters())
