"""Direct difference target propagation: a golden step, Gauss-Newton, backpropagation as a limit, a
naive implementation, what inverses learn, isolation."""

from __future__ import annotations

import copy
import itertools

import networks
import pytest
import torch
from networks import NETWORKS, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, heads
from layerwise.rules import DirectDifferenceTargetPropagation


def half_square(z: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (z - y).square().sum(1).mean()


def test_golden() -> None:
    # x = 2, h_1 = 0.5 x = 1, h_2 = 3 h_1 = 3, z = -h_2 = -3, y = -1
    # L = (z - y)^2 / 2 = 2, dL/dz = -2, dL/dW_3 = -2 * 3 = -6
    # t = -3 + 0.25 * 2 = -2.5, g_3(u) = -0.5 u, g_2(u) = 0.4 u + 0.1
    # t_2 = 3 + 1.25 - 1.5 = 2.75                  dL/dW_2 -> (3 - 2.75) / 0.25 * 1 = 1
    # t_1 = 1 + 0.4 * (-2.5) - 0.4 * (-3) = 1.2    dL/dW_1 -> (1 - 1.2) / 0.25 * 2 = -1.6
    # noise 0.5, e = n = 0.5, damping 0.1:
    # g_2: F_2(1.5) = -4.5, g_2(-4.5) - g_2(-3) = -0.6, minus e: -1.1; g_2(-2.5) - g_2(-3) = 0.2
    #      loss (1.21 + 0.1 * 0.04) / 0.25 = 4.856
    #      dg_2 weight: (2 * (-1.1) * (-1.5) + 0.1 * 2 * 0.2 * 0.5) / 0.25 = 13.28, bias 0
    # g_3: F_3(3.5) = -3.5, g_3(-3.5) - g_3(-3) = 0.25, minus e: -0.25; with n: -0.25
    #      dg_3 weight: (2 * (-0.25) * (-0.5) + 0.1 * 2 * (-0.25) * 0.5) / 0.25 = 0.9, bias 0
    parts = [nn.Linear(1, 1, bias=False).double() for _ in range(3)]
    for part, weight in zip(parts, (0.5, 3.0, -1.0), strict=True):
        nn.init.constant_(part.weight, weight)
    x, y = torch.tensor([[2.0]]).double(), torch.tensor([[-1.0]]).double()
    rule = DirectDifferenceTargetPropagation(
        Blocks(parts, example=x), beta=0.25, noise=0.5, damping=0.1, criterion=half_square
    )
    assert list(rule.inverses) == [1, 2]
    for k, weight, bias in ((1, 0.4, 0.1), (2, -0.5, 0.0)):
        nn.init.constant_(rule.inverses[k][0].weight, weight)
        nn.init.constant_(rule.inverses[k][0].bias, bias)
    rule.draw = torch.ones_like
    report = rule.backward(x, y)
    wanted = {
        "blocks.0.weight": -1.6,
        "blocks.1.weight": 1.0,
        "blocks.2.weight": -6.0,
        "inverses.1.0.weight": 13.28,
        "inverses.1.0.bias": 0.0,
        "inverses.2.0.weight": 0.9,
        "inverses.2.0.bias": 0.0,
    }
    got = {name: float(g) for name, g in grads(rule).items()}
    assert got == pytest.approx(wanted, abs=1e-13)
    assert report.local_losses[0] is None
    assert [float(loss) for loss in report.local_losses[1:]] == pytest.approx([4.856, 2.0])


def _linear_network(batch: int) -> tuple[list[nn.Linear], Tensor, Tensor]:
    parts = [nn.Linear(a, b).double() for a, b in itertools.pairwise([6, 5, 4, 3])]
    return parts, torch.randn(batch, 6).double(), torch.randint(3, (batch,))


def _jacobian(parts: list[nn.Linear], k: int) -> Tensor:
    """Of the class scores with respect to block k's input."""
    jacobian = torch.eye(3).double()
    for part in reversed(parts[k:]):
        jacobian = jacobian @ part.weight.detach()
    return jacobian


def test_with_pseudo_inverses_it_is_gauss_newton() -> None:
    """On a linear network and one sample, with e = dL/dz: the gradient of a block's weight W is
    |h|^2 times the least-squares solution of A vec(dW) = e with the smallest norm, where
    A = dz/dW and h is the block's input. That is the Gauss-Newton step of this block alone, for
    the Hessian of the scores taken as the identity."""
    parts, x, y = _linear_network(1)
    rule = DirectDifferenceTargetPropagation(Blocks(parts, example=x), beta=0.3)
    for k in rule.inverses:
        rule.inverses[k][0].weight.data = torch.linalg.pinv(_jacobian(parts, k))
    rule.backward(x, y)
    z = nn.Sequential(*parts)(x).detach().requires_grad_()
    (e,) = torch.autograd.grad(F.cross_entropy(z, y), z)
    h = x
    for k, part in enumerate(parts[:-1]):
        after = nn.Sequential(*parts[k + 1 :])

        def scores(weight: Tensor, part: nn.Linear = part, h: Tensor = h, after=after) -> Tensor:
            return after(F.linear(h, weight, part.bias))[0]

        a = torch.autograd.functional.jacobian(scores, part.weight.detach()).flatten(1)
        step = torch.linalg.lstsq(a, e[0], driver="gelsd").solution.view_as(part.weight)
        torch.testing.assert_close(part.weight.grad, h.square().sum() * step)
        h = part(h).detach()


def test_inverses_are_best_at_the_damped_pseudo_inverse() -> None:
    """On a linear network, with noise of which the means of e e^T and n n^T over the batch are the
    identity: the gradient is 0 at J^T (J J^T + damping)^-1."""
    parts = [nn.Linear(4, 4).double() for _ in range(3)]
    x, y = torch.randn(4, 4).double(), torch.randint(4, (4,))
    for damping in (0.0, 0.5, 20.0):
        rule = DirectDifferenceTargetPropagation(
            Blocks(parts, example=x), noise=0.3, damping=damping
        )
        rule.draw = lambda h: 2 * torch.eye(4).to(h)
        for k in rule.inverses:
            j = parts[2].weight.detach()
            j = j if k == 2 else j @ parts[1].weight.detach()
            square = j @ j.T + damping * torch.eye(4).double()
            rule.inverses[k][0].weight.data = j.T @ square.inverse()
        rule.zero_grad()
        report = rule.backward(x, y)
        for k in rule.inverses:
            assert rule.inverses[k][0].weight.grad.abs().max() < 1e-12
        if damping == 0:
            assert report.local_losses[1] < 1e-20


class Transposed(nn.Module):
    """u -> J^T u, with J the Jacobian of the blocks from one on where their input is h; with
    `curved`, what bends away from it on both sides of the class scores."""

    def __init__(self, blocks: list[nn.Module], h: Tensor, curved: float = 0.0):
        super().__init__()
        self.of = blocks, h.detach(), curved  # not registered: they are the network's

    def forward(self, u: Tensor) -> Tensor:
        blocks, h, curved = self.of
        with torch.enable_grad():
            leaf = h.clone().requires_grad_()
            out = nn.Sequential(*blocks)(leaf.view_as(leaf))
            u = u + curved * (u - out.detach()) ** 2
            return torch.autograd.grad(out, leaf, u)[0]


def _with_transposes(
    rule: DirectDifferenceTargetPropagation, x: Tensor, curved: float = 0.0
) -> None:
    h = x
    for k, block in enumerate(rule.blocks):
        if k in rule.inverses:
            rule.inverses[k] = Transposed(list(rule.blocks)[k:], h, curved)
        h = block(h).detach()


def _backprop(rule: DirectDifferenceTargetPropagation, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    rule.zero_grad()
    F.cross_entropy(nn.Sequential(*rule.blocks)(x), y).backward()
    found = grads(rule.blocks)
    rule.zero_grad()
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_with_transposed_jacobians_it_is_backprop(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        DirectDifferenceTargetPropagation, "inverse_loss", lambda *_: torch.zeros(())
    )
    case = NETWORKS[network](torch.float64)
    rule = DirectDifferenceTargetPropagation(case.blocks, beta=0.7)
    _with_transposes(rule, case.x)
    wanted = _backprop(rule, case.x, case.y)
    rule.backward(case.x, case.y)
    assert_close(grads(rule.blocks), wanted, atol=1e-12)


def test_backprop_is_the_limit_of_small_beta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inverses whose Jacobian is right at the class scores alone: what is wrong goes with beta."""
    monkeypatch.setattr(
        DirectDifferenceTargetPropagation, "inverse_loss", lambda *_: torch.zeros(())
    )
    case = networks.plain_cnn(torch.float64)
    off = []
    for beta in (1e-2, 1e-3, 1e-4):
        rule = DirectDifferenceTargetPropagation(case.blocks, beta=beta)
        _with_transposes(rule, case.x, curved=1.0)
        wanted = _backprop(rule, case.x, case.y)
        rule.backward(case.x, case.y)
        off.append(sum(float((g - wanted[n]).norm()) for n, g in grads(rule.blocks).items()))
    assert off[0] / off[1] == pytest.approx(10, rel=1e-2)
    assert off[1] / off[2] == pytest.approx(10, rel=1e-2)


class Recorded:
    """Noise, and what was drawn."""

    def __init__(self) -> None:
        self.drawn: list[Tensor] = []

    def __call__(self, h: Tensor) -> Tensor:
        self.drawn.append(torch.randn_like(h))
        return self.drawn[-1]


def _naive(
    rule: DirectDifferenceTargetPropagation, x: Tensor, y: Tensor, drawn: list[Tensor]
) -> dict[str, Tensor]:
    """One loss after the other, each asked for by parameter."""
    drawn, names = list(drawn), {p: n for n, p in rule.named_parameters()}
    found: dict[str, Tensor] = {}

    def learn(loss: Tensor, module: nn.Module) -> None:
        parameters = [p for p in module.parameters() if p.requires_grad]
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            found[names[p]] = found.get(names[p], 0) + g

    blocks, count, last = list(rule.blocks), len(x), len(rule.blocks) - 1
    h = [x]
    for block in blocks:
        h.append(block(h[-1].detach()))
    z = h[-1].detach().requires_grad_()
    t = z - rule.beta * torch.autograd.grad(count * F.cross_entropy(z, y), z)[0]
    learn(F.cross_entropy(h[-1], y), blocks[-1])
    for k in range(1, last + 1):
        g, z = rule.inverses[k], h[-1].detach()
        target = (h[k] + g(t) - g(z)).detach()
        error = (h[k] - target).square().sum() / count
        learn(error / (2 * rule.beta), blocks[k - 1])
        for _ in range(rule.samples):
            e = rule.noise * drawn.pop(0)
            noisy = h[k].detach() + e
            for block in blocks[k:]:
                noisy = copy.deepcopy(block)(noisy).detach()
            loss = F.mse_loss(g(noisy) - g(z), e)
            if rule.damping:
                n = rule.noise * drawn.pop(0)
                loss = loss + rule.damping * F.mse_loss(g(z + n), g(z))
            learn(loss / rule.noise**2 / rule.samples, g)
    assert not drawn
    return found


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("network", NETWORKS)
def test_against_a_naive_implementation(network: str, damping: float) -> None:
    case = NETWORKS[network](torch.float64)
    rule = DirectDifferenceTargetPropagation(
        case.blocks,
        heads.Inverse(layers=1, width=3, fixed=bool(damping)),
        beta=0.5,
        noise=0.7,
        samples=2,
        damping=damping,
    )
    rule.draw = Recorded()
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    assert_close(got, _naive(rule, case.x, case.y, rule.draw.drawn), atol=1e-11)


def test_an_inverse_reaches_one_block_alone() -> None:
    case = networks.cnn(torch.float64)
    rule = DirectDifferenceTargetPropagation(case.blocks)
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
    assert same == [True, False, True, True]


def test_later_weights_reach_a_block_through_the_scores_alone() -> None:
    """Two networks with the same class scores and other weights behind the first block: it gets
    the same gradient, although backpropagation's differs."""
    found = []
    for factor in (1.0, 2.0):
        torch.manual_seed(0)
        parts = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise([6, 5, 4, 3])]
        x, y = torch.randn(4, 6), torch.randint(3, (4,))
        rule = DirectDifferenceTargetPropagation(Blocks(parts, example=x))
        parts[1].weight.data *= factor  # powers of two: without rounding
        parts[2].weight.data /= factor
        rule.backward(x, y)
        found.append(grads(rule.blocks[0]))
    assert_same(found[0], found[1])


def test_steps_of_blocks_do_not_reach_inverses() -> None:
    """Blocks that are stepped as soon as they are done give every inverse the same gradient."""
    case = networks.cnn(torch.float64)
    rule = DirectDifferenceTargetPropagation(case.blocks)
    rule.draw = networks.waves
    rule.backward(case.x, case.y)
    wanted = grads(rule)
    rule.zero_grad()
    got: dict[str, Tensor] = {}

    def step(k: int) -> None:
        mine = {id(p) for p in rule.parameters_of(k)}
        for name, p in rule.named_parameters():
            if id(p) in mine:
                got[name] = p.grad.clone()
                p.data.add_(p.grad, alpha=-10.0)

    rule.backward(case.x, case.y, on_block=step)
    assert_same(got, wanted)


@pytest.mark.slow
def test_inverses_learn_to_approach_gauss_newton() -> None:
    """On a linear network that stays as it is, without damping: what the first block's output is
    asked to change by comes to be the pseudo-inverse's."""
    parts, x, y = _linear_network(64)
    rule = DirectDifferenceTargetPropagation(Blocks(parts, example=x), damping=0.0)
    optimizer = torch.optim.Adam(rule.inverses.parameters(), lr=0.1)
    z = nn.Sequential(*parts)(x).detach()
    e = torch.softmax(z, 1) - F.one_hot(y, 3)
    wanted = e @ torch.linalg.pinv(_jacobian(parts, 1)).T
    angles = []
    for _ in range(300):
        optimizer.zero_grad()
        rule.backward(x, y)
        optimizer.step()
        asked = rule.inverses[1](z + e).detach() - rule.inverses[1](z).detach()
        angles.append(F.cosine_similarity(asked.flatten(), wanted.flatten(), 0).item())
    assert angles[0] < 0.5
    assert angles[-1] > 0.98


def test_a_fixed_hidden_layer() -> None:
    """Only the last layer of each inverse learns."""
    case = networks.mlp()
    rule = DirectDifferenceTargetPropagation(
        case.blocks, heads.Inverse(layers=1, width=8, fixed=True)
    )
    before = {n: p.clone() for n, p in rule.inverses.named_parameters()}
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1)
    for _ in range(2):
        rule.backward(case.x, case.y)
        optimizer.step()
    for k in rule.inverses:
        hidden, _, last = rule.inverses[k]
        assert torch.equal(hidden.weight, before[f"{k}.0.weight"])
        assert hidden.weight.grad is None
        assert not torch.equal(last.weight, before[f"{k}.2.weight"])


def test_bad_input() -> None:
    blocks = networks.mlp().blocks
    for option in ("beta", "noise", "samples"):
        with pytest.raises(ValueError, match=rf"\({option}=0\): give a positive number"):
            DirectDifferenceTargetPropagation(blocks, **{option: 0})
    with pytest.raises(ValueError, match=r"damping=-1\.?0?\): give 0 or more"):
        DirectDifferenceTargetPropagation(blocks, damping=-1.0)
    with pytest.raises(ValueError, match="got the class Inverse; give a recipe"):
        DirectDifferenceTargetPropagation(blocks, heads.Inverse)
    with pytest.raises(ValueError, match=r"fixed=True, layers=0.*give layers=1 or more"):
        heads.Inverse(fixed=True)
