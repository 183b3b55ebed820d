"""Target propagation: golden steps, where it is backpropagation, naive implementations, what
inverses learn."""

from __future__ import annotations

import copy
import itertools

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, heads, rules
from layerwise.rules.families.targets import TargetRule

RULES = [rules.DifferenceTargetPropagation, rules.LDRL]


def half_square(z: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (z - y).square().sum(1).mean()


def _scalars() -> tuple[Blocks, Tensor, Tensor]:
    """x = 2, h_1 = 0.5 x = 1, h_2 = 3 h_1 = 3, z = -h_2 = -3, y = -1."""
    parts = [nn.Linear(1, 1, bias=False).double() for _ in range(3)]
    for part, weight in zip(parts, (0.5, 3.0, -1.0), strict=True):
        nn.init.constant_(part.weight, weight)
    x = torch.tensor([[2.0]]).double()
    return Blocks(parts, example=x), x, torch.tensor([[-1.0]]).double()


def _set(rule: TargetRule, k: int, weight: float, bias: float) -> None:
    (linear,) = rule.inverses[k]
    nn.init.constant_(linear.weight, weight)
    nn.init.constant_(linear.bias, bias)


def _assert_grads(rule: TargetRule, wanted: dict[str, float]) -> None:
    got = {name: float(g) for name, g in grads(rule).items()}
    assert got == pytest.approx(wanted, abs=1e-14)


def test_golden_difference_target_propagation() -> None:
    # L = (z - y)^2 / 2 = 2, dL/dz = z - y = -2, dL/dh_2 = 2
    # dL/dW_3 = -2 * 3 = -6
    # t_2 = 3 - 0.25 * 2 = 2.5                     dL/dW_2 -> (3 - 2.5) / 0.25 * 1 = 2
    # g(u) = 0.4 u + 0.1
    # t_1 = 1 + 0.4 * 2.5 - 0.4 * 3 = 0.8          dL/dW_1 -> (1 - 0.8) / 0.25 * 2 = 1.6
    # noise 0.5: h_1 + e = 1.5, f_2 = 4.5, g = 1.9, off by 0.4: loss 0.16
    # dg weight: 2 * 0.4 * 4.5 = 3.6, bias: 2 * 0.4 = 0.8
    blocks, x, y = _scalars()
    rule = rules.DifferenceTargetPropagation(blocks, beta=0.25, noise=0.5, criterion=half_square)
    assert list(rule.inverses) == [1]
    _set(rule, 1, 0.4, 0.1)
    rule.draw = torch.ones_like
    report = rule.backward(x, y)
    _assert_grads(
        rule,
        {
            "blocks.0.weight": 1.6,
            "blocks.1.weight": 2.0,
            "blocks.2.weight": -6.0,
            "inverses.1.0.weight": 3.6,
            "inverses.1.0.bias": 0.8,
        },
    )
    assert report.local_losses[0] is None
    assert [float(loss) for loss in report.local_losses[1:]] == pytest.approx([0.16, 2.0])


def test_golden_ldrl() -> None:
    # dL/dz = -2, dL/dW_3 = -6
    # t_3 = -3 + 0.25 * 2 = -2.5, g_3(u) = -0.5 u
    # t_2 = 3 + 1.25 - 1.5 = 2.75                  dL/dW_2 -> (3 - 2.75) / 0.25 * 1 = 1
    # g_2(u) = 0.4 u + 0.1
    # t_1 = 1 + 0.4 * 2.75 - 0.4 * 3 = 0.9         dL/dW_1 -> (1 - 0.9) / 0.25 * 2 = 0.8
    # noise 0.5, e = n = 0.5:
    # g_2(f_2(1.5)) - g_2(3) = 0.4 * 1.5 = 0.6, g_2(3.5) - g_2(3) = 0.2
    # loss (0.2^2 - 2 * 0.5 * 0.6) / 0.25 = -2.24
    # dg_2 weight: 2 (0.4 - W_2) = -5.2, bias 0; dg_3 weight: 2 (-0.5 - W_3) = 1
    blocks, x, y = _scalars()
    rule = rules.LDRL(blocks, beta=0.25, noise=0.5, criterion=half_square)
    assert list(rule.inverses) == [1, 2]
    _set(rule, 1, 0.4, 0.1)
    _set(rule, 2, -0.5, 0.0)
    rule.draw = torch.ones_like
    report = rule.backward(x, y)
    _assert_grads(
        rule,
        {
            "blocks.0.weight": 0.8,
            "blocks.1.weight": 1.0,
            "blocks.2.weight": -6.0,
            "inverses.1.0.weight": -5.2,
            "inverses.1.0.bias": 0.0,
            "inverses.2.0.weight": 1.0,
            "inverses.2.0.bias": 0.0,
        },
    )
    assert report.local_losses[0] is None
    assert [float(loss) for loss in report.local_losses[1:]] == pytest.approx([-2.24, 2.0])


def _backprop(rule: TargetRule, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    rule.zero_grad()
    F.cross_entropy(nn.Sequential(*rule.blocks)(x), y).backward()
    found = grads(rule.blocks)
    rule.zero_grad()
    return found


class Transposed(nn.Module):
    """u -> J^T u, with J the Jacobian of a block where its input is h; with `curved`, what bends
    away from it on both sides of the block's output."""

    def __init__(self, block: nn.Module, h: Tensor, curved: float = 0.0):
        super().__init__()
        self.of = block, h.detach(), curved  # not registered: they are the network's

    def forward(self, u: Tensor) -> Tensor:
        block, h, curved = self.of
        with torch.enable_grad():
            leaf = h.clone().requires_grad_()
            out = block(leaf.view_as(leaf))
            u = u + curved * (u - out.detach()) ** 2
            return torch.autograd.grad(out, leaf, u)[0]


def _with_transposes(rule: TargetRule, x: Tensor, curved: float = 0.0) -> None:
    h = x
    for k, block in enumerate(rule.blocks):
        if k in rule.inverses:
            rule.inverses[k] = Transposed(block, h, curved)
        h = block(h).detach()


@pytest.mark.parametrize("make", RULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_with_transposed_jacobians_it_is_backprop(
    network: str, make: type[TargetRule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also through BatchNorm, which couples samples; these inverses are linear, so for any beta."""
    monkeypatch.setattr(make, "inverse_loss", lambda *_: torch.zeros(()))
    case = NETWORKS[network](torch.float64)
    rule = make(case.blocks, beta=0.7)
    _with_transposes(rule, case.x)
    wanted = _backprop(rule, case.x, case.y)
    rule.backward(case.x, case.y)
    assert_close(grads(rule.blocks), wanted, atol=1e-12)


@pytest.mark.parametrize("make", RULES)
def test_backprop_is_the_limit_of_small_beta(
    make: type[TargetRule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inverses whose Jacobian is right at the activation alone: what is wrong goes with beta."""
    monkeypatch.setattr(make, "inverse_loss", lambda *_: torch.zeros(()))
    case = networks.plain_cnn(torch.float64)
    off = []
    for beta in (1e-2, 1e-3, 1e-4):
        rule = make(case.blocks, beta=beta)
        _with_transposes(rule, case.x, curved=1.0)
        wanted = _backprop(rule, case.x, case.y)
        rule.backward(case.x, case.y)
        off.append(sum(float((g - wanted[n]).norm()) for n, g in grads(rule.blocks).items()))
    assert off[0] / off[1] == pytest.approx(10, rel=1e-2)
    assert off[1] / off[2] == pytest.approx(10, rel=1e-2)


def test_two_blocks_of_difference_target_propagation_are_backprop() -> None:
    case = networks.cnn(torch.float64, blocks=2)
    rule = rules.DifferenceTargetPropagation(case.blocks)
    assert not list(rule.inverses.parameters())
    wanted = _backprop(rule, case.x, case.y)
    rule.backward(case.x, case.y)
    assert_close(grads(rule.blocks), wanted, atol=1e-14)


def test_exact_inverses_ask_for_the_gauss_newton_step() -> None:
    """Of one sample and linear blocks: what a bias gets is what its block's output is asked to
    change by, J^-1 dL/dh_{K-1} with J that of the blocks behind."""
    parts = [nn.Linear(4, 4).double() for _ in range(4)] + [nn.Linear(4, 3).double()]
    x, y = torch.randn(1, 4).double(), torch.tensor([2])
    blocks = Blocks(parts, example=x)
    rule = rules.DifferenceTargetPropagation(blocks, beta=0.3)
    for k in rule.inverses:
        inverse = rule.inverses[k]
        weight, bias = parts[int(k)].weight.detach().inverse(), parts[int(k)].bias.detach()
        inverse[0].weight.data = weight
        inverse[0].bias.data = -weight @ bias
    report = rule.backward(x, y)
    for loss in report.local_losses[1:-1]:
        assert loss < 1e-25
    h = nn.Sequential(*parts[:4])(x).detach().requires_grad_()
    (e,) = torch.autograd.grad(F.cross_entropy(parts[4](h), y), h)
    jacobian = torch.eye(4).double()
    for part in reversed(parts[:4]):
        wanted = torch.linalg.solve(jacobian, e[0])
        torch.testing.assert_close(part.bias.grad, wanted, rtol=1e-9, atol=1e-12)
        jacobian = jacobian @ part.weight.detach()


class Recorded:
    """Noise, and what was drawn."""

    def __init__(self) -> None:
        self.drawn: list[Tensor] = []

    def __call__(self, h: Tensor) -> Tensor:
        self.drawn.append(torch.randn_like(h))
        return self.drawn[-1]


def _naive(rule: TargetRule, x: Tensor, y: Tensor, drawn: list[Tensor]) -> dict[str, Tensor]:
    """Targets first, then one loss after the other, each asked for by parameter."""
    drawn = list(drawn)
    names = {p: n for n, p in rule.named_parameters()}
    found: dict[str, Tensor] = {}

    def learn(loss: Tensor, module: nn.Module) -> None:
        parameters = list(module.parameters())
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            found[names[p]] = found.get(names[p], 0) + g

    blocks, count, last = list(rule.blocks), len(x), len(rule.blocks) - 1
    h = [x]
    for block in blocks:
        h.append(block(h[-1].detach()))
    top = h[-1].detach().requires_grad_()
    t = {last + 1: top - rule.beta * torch.autograd.grad(count * F.cross_entropy(top, y), top)[0]}
    if not rule.from_scores:
        top = h[-2].detach().requires_grad_()
        loss = count * F.cross_entropy(blocks[-1](top), y)
        t[last] = top - rule.beta * torch.autograd.grad(loss, top)[0]
    learn(F.cross_entropy(h[-1], y), blocks[-1])
    for k in reversed(range(1, last + 1)):
        if k in rule.inverses:
            g = rule.inverses[k]
            t[k] = (h[k] + g(t[k + 1]) - g(h[k + 1])).detach()
    for k in range(last):
        error = (h[k + 1] - t[k + 1].detach()).square().sum() / count
        learn(error / (2 * rule.beta), blocks[k])
    for k in reversed(range(1, last + 1)):
        if k not in rule.inverses:
            continue
        g, before, after = rule.inverses[k], h[k].detach(), h[k + 1].detach()
        for _ in range(rule.samples):
            e = rule.noise * drawn.pop(0)
            noisy = copy.deepcopy(blocks[k])(before + e).detach()
            if not rule.from_scores:
                loss = F.mse_loss(g(noisy), before + e)
            else:
                n = rule.noise * drawn.pop(0)
                loss = F.mse_loss(g(after + n), g(after)) / rule.noise**2
                loss = loss - 2 * (e * (g(noisy) - g(after))).mean() / rule.noise**2
            learn(loss / rule.samples, g)
    assert not drawn
    return found


@pytest.mark.parametrize("make", RULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_against_a_naive_implementation(network: str, make: type[TargetRule]) -> None:
    case = NETWORKS[network](torch.float64)
    inverse = heads.Inverse(layers=1, width=3)
    rule = make(case.blocks, inverse, beta=0.5, noise=0.7, samples=2)
    rule.draw = Recorded()
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    assert_close(got, _naive(rule, case.x, case.y, rule.draw.drawn), atol=1e-11)


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_random_chains(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    widths = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    acts = [nn.Tanh(), nn.Identity(), nn.ReLU(inplace=True)]
    parts = [
        nn.Sequential(nn.Linear(a, b).double(), data.draw(st.sampled_from(acts)))
        for a, b in itertools.pairwise([*widths, 3])
    ]
    count = data.draw(st.integers(1, 4))
    x, y = torch.randn(count, widths[0]).double(), torch.randint(3, (count,))
    rule = data.draw(st.sampled_from(RULES))(
        Blocks(parts, example=x),
        heads.Inverse(layers=data.draw(st.integers(0, 2))),
        data.draw(st.floats(0.01, 2)),
        data.draw(st.floats(0.1, 2)),
        data.draw(st.integers(1, 3)),
    )
    rule.draw = Recorded()
    rule.backward(x, y)
    got = grads(rule)
    assert_close(got, _naive(rule, x, y, rule.draw.drawn), atol=1e-9)


def test_ldrl_is_least_where_the_inverse_is_the_transpose() -> None:
    """On a linear block, with noise of which the mean of e e^T over the batch is the identity, the
    gradient is 2 (V - W^T) / 4 and the loss (|V - W^T|^2 - |W|^2) / 4, a mean over 4 elements; a
    step of lr 2 gets there at once."""
    parts = [nn.Linear(4, 4).double() for _ in range(3)]
    x, y = torch.randn(4, 4).double(), torch.randint(4, (4,))
    rule = rules.LDRL(Blocks(parts, example=x), noise=0.3)
    rule.draw = lambda h: 2 * torch.eye(4).to(h)
    inverse, weight = rule.inverses[1][0].weight, parts[1].weight.detach()
    report = rule.backward(x, y)
    torch.testing.assert_close(inverse.grad, (inverse.detach() - weight.T) / 2)
    wanted = ((inverse - weight.T).square().sum() - weight.square().sum()) / 4
    torch.testing.assert_close(report.local_losses[1], wanted.detach())
    with torch.no_grad():
        inverse -= 2 * inverse.grad
    torch.testing.assert_close(inverse.detach(), weight.T)
    rule.zero_grad()
    rule.backward(x, y)
    assert inverse.grad.abs().max() < 1e-13


def test_inverses_learn_what_they_are_for() -> None:
    """Of a network that stays as it is: under LDRL the first block's gradient comes to be
    backpropagation's, under the other rule inverses come to give back what went in."""
    parts = [nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)]
    x, y = torch.randn(256, 6), torch.randint(3, (256,))
    for make in RULES:
        rule = make(Blocks(parts, example=x))
        optimizer = torch.optim.SGD(rule.inverses.parameters(), lr=0.5, momentum=0.5)
        wanted = _backprop(rule, x, y)["0.weight"]
        losses, off, late = [], [], []
        for _ in range(60):
            rule.zero_grad()
            losses.append(rule.backward(x, y).local_losses[1])
            optimizer.step()
            late = [*late[-19:], parts[0].weight.grad.clone()]
            off.append((torch.stack(late).mean(0) - wanted).norm() / wanted.norm())
        if make is rules.LDRL:  # in the mean over the noise of 20 steps
            assert off[-1] < 0.1 < 0.5 < off[0]
        else:
            assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("make", RULES)
def test_chance_is_the_inverses_alone(make: type[TargetRule]) -> None:
    """Blocks get the same gradient from the same batch, inverses from the same seed."""
    case = networks.cnn(torch.float64)
    rule = make(case.blocks)
    found = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        rule.zero_grad()
        rule.backward(case.x, case.y)
        found.append(grads(rule))
    assert_same(found[0], found[2])
    for name, g in found[0].items():
        assert torch.equal(g, found[1][name]) == name.startswith("blocks") or not g.any(), name


@pytest.mark.parametrize("make", RULES)
def test_an_inverse_reaches_the_blocks_before(make: type[TargetRule]) -> None:
    case = networks.cnn(torch.float64)
    rule = make(case.blocks)
    rule.backward(case.x, case.y)
    before = [grads(block) for block in rule.blocks]
    with torch.no_grad():
        for p in rule.inverses[2].parameters():
            p.mul_(2)
    rule.zero_grad()
    rule.backward(case.x, case.y)
    same = [
        all(torch.equal(g, before[k][name]) for name, g in grads(block).items())
        for k, block in enumerate(rule.blocks)
    ]
    assert same == [False, False, True, True]


@pytest.mark.parametrize("make", RULES)
def test_noise_leaves_no_trace_in_statistics(make: type[TargetRule]) -> None:
    case = networks.resnet()
    plain = copy.deepcopy(case.model)
    plain(case.x)
    make(case.blocks, samples=3).backward(case.x, case.y)
    assert_same(dict(case.model.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize("make", RULES)
def test_small_targets_survive_autocast(make: type[TargetRule]) -> None:
    """In bfloat16 a change of 1e-4 would be lost beside the activation."""
    case = networks.mlp()
    rule = make(case.blocks, heads.Inverse(layers=1, width=64), beta=1e-3)
    rule.backward(case.x, case.y)
    wanted = torch.cat([g.flatten() for g in grads(rule.blocks).values()])
    rule.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rule.backward(case.x, case.y)
    got = torch.cat([g.flatten() for g in grads(rule.blocks).values()])
    assert F.cosine_similarity(got, wanted, 0) > 0.999


@pytest.mark.parametrize("make", RULES)
def test_a_block_that_changes_its_input(make: type[TargetRule]) -> None:
    parts = [
        nn.Linear(6, 5),
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 4)),
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)),
    ]
    x, y = torch.randn(4, 6), torch.randint(0, 3, (4,))
    rule = make(Blocks(parts, example=x))
    rule.draw = networks.waves
    rule.backward(x, y)
    got = grads(rule)
    rule.zero_grad()
    for part in parts[1:]:
        part[0].inplace = False
    rule.backward(x, y)
    assert_same(got, grads(rule))


@pytest.mark.parametrize("make", RULES)
def test_a_label_for_every_token(make: type[TargetRule]) -> None:
    """Inverses work token by token, on as many tokens as there are."""
    layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True).double()
    parts = [nn.Embedding(11, 6).double(), layer, nn.Linear(6, 11).double()]
    rule = make(Blocks(parts, example=torch.randint(0, 11, (4, 7))))
    x, y = torch.randint(0, 11, (4, 9)), torch.randint(0, 11, (4, 9))
    rule.backward(x, y)
    assert all(p.grad is not None for p in rule.parameters())


def test_bad_input() -> None:
    for make in RULES:
        name = make.__name__
        blocks = networks.mlp().blocks
        for option in ("beta", "noise", "samples"):
            with pytest.raises(ValueError, match=rf"{name}\({option}=0\): give a positive number"):
                make(blocks, **{option: 0})
        with pytest.raises(ValueError, match=rf"{name}\(blocks\).*give an example"):
            make(Blocks([nn.Linear(6, 3), nn.Linear(3, 3)]))
        with pytest.raises(ValueError, match=rf"{name}\(blocks\): got Linear"):
            make(nn.Linear(3, 3))
        with pytest.raises(ValueError, match=r"got the class Inverse; give a recipe") as e:
            make(blocks, heads.Inverse)
        assert "\n" not in str(e.value)
