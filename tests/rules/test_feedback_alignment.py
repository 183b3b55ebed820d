"""Feedback through other matrices: where it is backpropagation, naive implementations, what is a
layer."""

from __future__ import annotations

from collections.abc import Callable

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from layerwise import Blocks, Rule, rules
from layerwise.rules.families.feedback import FeedbackRule, key


def as_weights(rule: rules.FeedbackAlignment) -> rules.FeedbackAlignment:
    """With B = W."""
    for weight, matrix in rule.matrices().items():
        matrix.data.copy_(weight.data)
    return rule


def backprop(rule: FeedbackRule, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The network's own gradient under the rule's names."""
    rule.zero_grad()
    F.cross_entropy(nn.Sequential(*rule.blocks)(x), y).backward()
    found = grads(rule)
    rule.zero_grad()
    return found


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("network", [*NETWORKS, "mlp_norm", "plain_cnn"])
def test_with_the_weights_it_is_backprop(network: str, blocks: int) -> None:
    case = getattr(networks, network)(torch.float64, blocks=blocks)
    rule = as_weights(rules.FeedbackAlignment(case.blocks))
    wanted = backprop(rule, case.x, case.y)
    rule.backward(case.x, case.y)
    assert_close(grads(rule), wanted, atol=1e-14)


@pytest.mark.parametrize("network", NETWORKS)
def test_with_the_weights_it_is_backprop_under_autocast(network: str) -> None:
    case = NETWORKS[network](dropout=0.2)
    rule = as_weights(rules.FeedbackAlignment(case.blocks))
    rng = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(case.model(case.x), case.y)
    loss.backward()
    wanted = grads(rule)
    rule.zero_grad()
    torch.set_rng_state(rng)
    with torch.autocast("cpu", torch.bfloat16):
        report = rule.backward(case.x, case.y)
    assert torch.equal(report.loss, loss.detach())
    assert_close(grads(rule), wanted, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("network", NETWORKS)
def test_signs_of_weights_of_one_size_are_backprop(network: str) -> None:
    case = NETWORKS[network](torch.float64)
    rule = rules.SignSymmetry(case.blocks, scale=0.5)
    for weight, matrix in rule.matrices().items():
        weight.data.copy_(matrix)
    wanted = backprop(rule, case.x, case.y)
    rule.backward(case.x, case.y)
    assert_close(grads(rule), wanted, atol=1e-14)


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_no_backprop_else(network: str) -> None:
    """Only the last layer has the true gradient."""
    case = NETWORKS[network](torch.float64)
    for make in (rules.FeedbackAlignment, rules.SignSymmetry):
        rule = make(case.blocks)
        wanted = backprop(rule, case.x, case.y)
        rule.backward(case.x, case.y)
        same = [
            n
            for n, g in grads(rule).items()
            if g.abs().max() > 1e-12 and torch.allclose(g, wanted[n])
        ]
        assert same == list(wanted)[-2:]


def naive(rule: FeedbackRule, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Layers written as y = W sg[x] + sg[V] x - sg[V x], with a matrix V in the way of x."""
    matrices = rule.matrices()

    def trick(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def layer(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
            bias, *how = rest or (None,)
            y = op(x.detach(), weight, bias, *how)
            back = matrices.get(weight, weight).detach()  # the first sends nothing back
            return y + op(x, back, None, *how) - op(x.detach(), back, None, *how)

        return layer

    before = F.linear, F.conv2d
    F.linear, F.conv2d = trick(F.linear), trick(F.conv2d)
    try:
        F.cross_entropy(nn.Sequential(*rule.blocks)(x), y).backward()
    finally:
        F.linear, F.conv2d = before
    found = grads(rule)
    rule.zero_grad()
    return found


def frsf(blocks: Blocks) -> rules.SignSymmetry:
    return rules.SignSymmetry(blocks, scale=0.7, random_magnitude=True)


@pytest.mark.parametrize("make", [rules.FeedbackAlignment, rules.SignSymmetry, frsf])
@pytest.mark.parametrize("network", ["mlp", "mlp_norm", "cnn", "resnet", "plain_cnn"])
def test_against_a_naive_implementation(
    network: str, make: Callable[[Blocks], FeedbackRule]
) -> None:
    case = getattr(networks, network)(torch.float64)
    rule = make(case.blocks)
    wanted = naive(rule, case.x, case.y)
    rule.backward(case.x, case.y)
    assert_close(grads(rule), wanted, atol=1e-13)


@pytest.mark.parametrize("make", [rules.FeedbackAlignment, rules.SignSymmetry, frsf])
def test_attentions_projections(make: Callable[[Blocks], FeedbackRule]) -> None:
    """Each of the three parts of a weight goes back through its part of the matrix."""

    class Attention(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, x, x, need_weights=False)[0]

    first, attention = nn.Linear(4, 6).double(), Attention(6, 2, batch_first=True).double()
    last = nn.Sequential(nn.Flatten(), nn.Linear(5 * 6, 3)).double()
    nn.init.normal_(attention.in_proj_bias)
    x, y = torch.randn(3, 5, 4).double(), torch.tensor([0, 1, 2])
    rule = make(Blocks([first, attention, last], example=x))
    rule.backward(x, y)
    got = grads(rule)
    rule.zero_grad()
    matrices = {weight: matrix.detach() for weight, matrix in rule.matrices().items()}

    def layer(x: Tensor, weight: Tensor, bias: Tensor, matrix: Tensor) -> Tensor:
        back = F.linear(x, matrix)
        return F.linear(x.detach(), weight, bias) + back - back.detach()

    def of(module: nn.Module, x: Tensor) -> Tensor:
        return layer(x, module.weight, module.bias, matrices[module.weight])

    h, weight = first(x), attention.in_proj_weight
    thirds = (t.chunk(3) for t in (weight, attention.in_proj_bias, matrices[weight]))
    q, k, v = (
        layer(h, *part).unflatten(2, (2, 3)).transpose(1, 2) for part in zip(*thirds, strict=True)
    )
    mixed = (q @ k.mT / 3**0.5).softmax(-1) @ v
    h = of(attention.out_proj, mixed.transpose(1, 2).flatten(2))
    F.cross_entropy(of(last[1], h.flatten(1)), y).backward()
    assert_close(got, grads(rule), atol=1e-14)


@given(networks.chains(), st.sampled_from([rules.FeedbackAlignment, rules.SignSymmetry, frsf]))
@settings(max_examples=25, deadline=None)
def test_random_chains(case: networks.Case, make: Callable[[Blocks], FeedbackRule]) -> None:
    rule = make(case.blocks)
    wanted = naive(rule, case.x, case.y)
    rule.backward(case.x, case.y)
    assert_close(grads(rule), wanted, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_random_magnitudes(network: str) -> None:
    """frSF: the weights' signs, one magnitude throughout, of uSF's root mean square."""
    case = NETWORKS[network](torch.float64)
    rule, uniform = frsf(case.blocks), rules.SignSymmetry(case.blocks, scale=0.7).matrices()
    before = rule.matrices()
    squares = torch.cat([(m / uniform[w]).square().flatten() for w, m in before.items()])
    assert squares.mean().item() == pytest.approx(1, abs=4 * 0.9 / len(squares) ** 0.5)
    assert squares.max() <= 3
    assert all(torch.equal(m.sign(), w.sign()) for w, m in before.items())
    with torch.no_grad():
        for p in case.blocks.parameters():
            p.copy_(torch.randn_like(p))
    for w, m in rule.matrices().items():
        assert torch.equal(m, before[w].abs() * w.sign())
    # Where the magnitudes are the weights' it is backpropagation.
    for matrix, weight in zip(rule.feedback.buffers(), rule.matrices(), strict=True):
        matrix.copy_(weight.detach().abs())
    wanted = backprop(rule, case.x, case.y)
    rule.backward(case.x, case.y)
    assert_close(grads(rule), wanted, atol=1e-10)


@pytest.mark.parametrize("network", NETWORKS)
def test_magnitudes_drawn_for_each_batch(network: str) -> None:
    """brSF is frSF with what the generator gives at the start of the step; nothing is kept."""
    case = NETWORKS[network](torch.float64)
    rule = rules.SignSymmetry(case.blocks, random_magnitude=True, redraw=True)
    fixed = rules.SignSymmetry(case.blocks, random_magnitude=True)
    assert not list(rule.feedback.buffers())
    found = []
    for _ in range(2):
        rng = torch.get_rng_state()
        rule.backward(case.x, case.y)
        after = torch.get_rng_state()
        found.append(grads(rule))
        rule.zero_grad()
        torch.set_rng_state(rng)
        drawn = rule.matrices()
        assert torch.equal(torch.get_rng_state(), after)
        assert all(torch.equal(m.sign(), w.sign()) for w, m in drawn.items())
        for matrix, one in zip(fixed.feedback.buffers(), drawn.values(), strict=True):
            matrix.copy_(one.abs())
        fixed.backward(case.x, case.y)
        assert_same(grads(fixed), found[-1])
        fixed.zero_grad()
    first = f"blocks.0.{rule.weights[0][0]}"
    assert not torch.allclose(found[0][first], found[1][first])


class _Own(nn.Module):
    """A module of one's own: calls of functions, and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.position = nn.Parameter(torch.randn(5, 4))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens) + self.position
        return F.linear(h, self.weight)


class _Attention(nn.Module):
    """Projections of one weight, of two and of three; all are parts of in_proj_weight."""

    def __init__(self, **options: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)

    def forward(self, h: Tensor) -> Tensor:
        own, _ = self.attention(h, h, h, need_weights=False)
        other = h.flip(1)
        cross, _ = self.attention(h, other, other)
        every, _ = self.attention(h, other, h.tanh())
        return own + cross + every


@pytest.mark.filterwarnings("ignore:Using padding:UserWarning")
def test_what_is_a_layer() -> None:
    parts = [
        _Own(),
        nn.Sequential(_Attention(), _Attention(kdim=4, vdim=4)),
        nn.Sequential(nn.Conv1d(5, 6, 2, padding="same"), nn.ReLU(inplace=True)),
        nn.Sequential(nn.ConvTranspose1d(6, 2, 3, 2, output_padding=1, groups=2), nn.Flatten()),
        nn.Sequential(nn.Unflatten(1, (1, 2, 10)), nn.Conv2d(1, 2, (2, 3), padding="valid")),
        nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.LazyLinear(3)),
    ]
    net = nn.Sequential(*parts)
    x, y = torch.randint(7, (6, 5)), torch.randint(3, (6,))
    net(x)
    net.double()
    rule = as_weights(rules.FeedbackAlignment(Blocks(parts, example=x)))
    assert [len(names) for names in rule.weights] == [1, 4, 1, 1, 1, 2]
    assert rule.weights[0] == ["weight"]  # neither the table nor the positions
    wanted = backprop(rule, x, y)
    rule.backward(x, y)
    assert_close(grads(rule), wanted, atol=1e-14)
    # Each of them goes back through its matrix: doubled, it doubles what comes to lie before it.
    for k in range(1, len(parts)):
        for name in rule.weights[k]:
            matrix = rule.feedback[k].get_buffer(key(name))
            matrix.mul_(2)
            rule.zero_grad()
            rule.backward(x, y)
            matrix.div_(2)
            first = "blocks.0.weight"
            assert not torch.allclose(grads(rule)[first], wanted[first]), name


def test_three_dimensions() -> None:
    parts = [
        nn.ConvTranspose2d(2, 3, 2, dilation=2),
        nn.Unflatten(1, (1, 3)),
        nn.Conv3d(1, 2, 2, padding="same"),
        nn.ConvTranspose3d(2, 2, 2, stride=2, padding=1),
        nn.Conv3d(2, 1, 2, bias=False),
        nn.Flatten(),
        nn.Linear(3 * 7 * 7, 3),
    ]
    blocks = Blocks([part.double() for part in parts], example=torch.randn(3, 2, 3, 3).double())
    rule = as_weights(rules.FeedbackAlignment(blocks))
    assert sum(map(len, rule.weights)) == 5
    x, y = torch.randn(3, 2, 3, 3).double(), torch.randint(3, (3,))
    wanted = backprop(rule, x, y)
    rule.backward(x, y)
    assert_close(grads(rule), wanted, atol=1e-14)


class _Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layers, x, use_reentrant=False)


def test_what_is_checkpointed_within_a_block() -> None:
    torch.manual_seed(0)
    parts = [nn.Linear(6, 6), _Checkpointed(), nn.Linear(6, 3)]
    x, y = torch.randn(4, 6), torch.randint(3, (4,))
    rule = rules.FeedbackAlignment(Blocks(parts, example=x))
    rule.backward(x, y)
    got = grads(rule)
    rule.zero_grad()
    parts[1].forward = parts[1].layers.forward
    rule.backward(x, y)
    assert_same(got, grads(rule))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_blocks_run_as_written() -> None:
    case = networks.mlp()
    rule = rules.FeedbackAlignment(case.blocks)
    rule.backward(case.x, case.y)
    wanted = grads(rule)
    rule.zero_grad()
    case.blocks[1].compile(backend="aot_eager")
    rule.backward(case.x, case.y)
    assert_same(grads(rule), wanted)
    torch._dynamo.reset()


class _Product(nn.Module):
    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)


@pytest.mark.parametrize(
    "product",
    [F.linear, torch.matmul, lambda x, w: torch.einsum("bi,oi->bo", x, w)],
    ids=["imported", "matmul", "einsum"],
)
@pytest.mark.parametrize(
    "make", [rules.FeedbackAlignment, lambda b: rules.DirectFeedbackAlignment(b, layers=True)]
)
def test_it_warns_of_products_that_it_does_not_see(
    product: Callable[[Tensor, Tensor], Tensor], make: Callable[[Blocks], Rule]
) -> None:
    blocks = Blocks([nn.Linear(6, 6), _Product(product), nn.Linear(6, 3)], example=torch.ones(2, 6))
    with pytest.warns(UserWarning, match=r": 1\.weight is multiplied in another way"):
        make(blocks)


def test_functions_are_put_back() -> None:
    case = networks.mlp()
    before = F.linear, F.conv2d, torch.addmm
    rule = rules.FeedbackAlignment(case.blocks)
    rule.backward(case.x, case.y)
    with pytest.raises(ValueError, match="and the step fails"):
        rule.backward(case.x[:, :, :1], case.y)
    assert (F.linear, F.conv2d, torch.addmm) == before


def test_bad_input() -> None:
    x = torch.randn(4, 6)
    with pytest.raises(ValueError, match="give an example"):
        rules.FeedbackAlignment(Blocks([nn.Linear(6, 3)]))
    for make in (rules.FeedbackAlignment, rules.SignSymmetry):
        with pytest.raises(ValueError, match=r"scale=-1\): give a positive number"):
            make(networks.mlp().blocks, scale=-1)
    with pytest.raises(ValueError, match=r"SignSymmetry\(redraw=True\): constant magnitudes") as e:
        rules.SignSymmetry(networks.mlp().blocks, redraw=True)
    assert "\n" not in str(e.value)
    recurrent = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Flatten(), nn.RNNCell(6, 3))
    with pytest.raises(ValueError, match="has a RNNCell"):
        rules.FeedbackAlignment(Blocks([recurrent], example=x))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
    rule = rules.SignSymmetry(Blocks([nn.Linear(6, 6), normed], example=x))
    with pytest.raises(ValueError, match=r"SignSymmetry: F\.linear was called with a weight") as e:
        rule.backward(x, torch.randint(3, (4,)))
    assert "\n" not in str(e.value)
