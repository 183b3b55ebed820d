"""Decoupled greedy learning against a naive implementation: `autograd.grad`, block by block."""

from __future__ import annotations

import itertools

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, MeanSquare, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, Rule, heads, objectives, rules
from layerwise.heads import Head

ANYWHERE: dict[str, Head] = {
    "linear": heads.Linear(),
    "linear_all": heads.Linear(pool=None),
    "linear_1": heads.Linear(pool=1),
    "linear_fixed": heads.Linear(fixed=True),
    "mlp": heads.MLP(width=7),
    "mlp_deep": heads.MLP(layers=3, width=4, pool=1),
    "mlp_all": heads.MLP(layers=2, width=6, pool=None),
}
ON_MAPS: dict[str, Head] = {
    "conv": heads.Conv(),
    "conv_deep": heads.Conv(layers=2, channels=3, kernel_size=5, reduce=3, pool=1, hidden=6),
    "conv_narrowing": heads.Conv(layers=2, stride=2, widen=2),
    "conv_all": heads.Conv(kernel_size=1, pool=None),
    "mlp_sr": heads.MLPSR(),
    "mlp_sr_small": heads.MLPSR(convs=1, layers=1, width=5),
}


def naive(rule: Rule, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Each block's gradient from its own graph, asked for by parameter and not by `.grad`."""
    names = {p: n for n, p in rule.named_parameters()}
    found: dict[str, Tensor] = {}
    last = len(rule.blocks) - 1
    for i, block in enumerate(rule.blocks):
        x = block(x)
        parameters = list(block.parameters())
        if i < last:
            head = rule.objectives[i].head
            parameters += head.parameters()
            loss = F.cross_entropy(head(x), y)
        else:
            loss = F.cross_entropy(x, y)
        parameters = [p for p in parameters if p.requires_grad]
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            found[names[p]] = g
        x = x.detach()
    return found


CASES = [(n, h) for n in NETWORKS for h in ANYWHERE] + [
    (n, h) for n in ("cnn", "resnet") for h in ON_MAPS
]


@pytest.mark.parametrize(("network", "head"), CASES)
def test_dgl(network: str, head: str) -> None:
    case = NETWORKS[network](torch.float64)
    parts = list(case.blocks)
    if head in ON_MAPS and network == "cnn":  # a head on feature maps, wherever there are any
        parts = [*parts[:2], nn.Sequential(*parts[2:])]
    rule = rules.DGL(Blocks(parts, example=case.x), head=(ANYWHERE | ON_MAPS)[head])
    rule.backward(case.x, case.y)
    wanted = naive(rule, case.x, case.y)
    assert wanted.keys() == {n for n, p in rule.named_parameters() if p.requires_grad}
    assert_same(grads(rule), wanted)


@pytest.mark.parametrize("network", NETWORKS)
def test_dgl_is_one_graph_with_stopped_gradients(network: str) -> None:
    """The equation read another way: the sum of all losses, detached between the blocks."""
    case = NETWORKS[network](torch.float64)
    rule = rules.DGL(case.blocks, head=networks.SMALL_HEAD)
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    h, total = case.x, torch.zeros((), dtype=torch.float64)
    for i, block in enumerate(case.blocks):
        h = block(h.detach())
        total = total + F.cross_entropy(rule.objectives[i].predict(h), case.y)
    total.backward()
    assert_close(got, grads(rule))


@pytest.mark.parametrize("network", NETWORKS)
def test_greedy_is_a_weighted_sum(network: str) -> None:
    case = NETWORKS[network](torch.float64)
    head = objectives.Classify(heads.Linear())
    rule = rules.Greedy(case.blocks, 2 * (0.25 * head + 0.5 * MeanSquare()))
    report = rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    h = case.x
    for i, block in enumerate(case.blocks):
        h = block(h.detach())
        if i < len(case.blocks) - 1:
            classify = next(m for m in rule.objectives[i].modules() if hasattr(m, "criterion"))
            loss = 0.5 * F.cross_entropy(classify.head(h), case.y) + (h * h).mean()
        else:
            loss = F.cross_entropy(h, case.y)
        loss.backward()
        torch.testing.assert_close(report.local_losses[i], loss.detach(), atol=1e-12, rtol=0)
    assert_close(got, grads(rule))


def test_gradient_is_the_slope_of_the_local_loss() -> None:
    """Central differences of what is reported, block 1's weights: 1e-6 step, 1e-8 error."""
    case = networks.plain_cnn(torch.float64)
    rule = rules.DGL(case.blocks, head=heads.Linear())
    rule.backward(case.x, case.y)
    weight = next(rule.blocks[1].parameters())
    direction = torch.randn_like(weight)
    slope = (weight.grad * direction).sum()
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * 1e-6 * direction)
        losses.append(rule.backward(case.x, case.y).local_losses[1])
        with torch.no_grad():
            weight.sub_(sign * 1e-6 * direction)
    torch.testing.assert_close((losses[0] - losses[1]) / 2e-6, slope, atol=1e-8, rtol=0)


NONLINEARITIES = [nn.Identity, nn.ReLU, nn.Tanh, nn.GELU]


@st.composite
def chains(draw: st.DrawFn) -> tuple[Blocks, Tensor, Tensor, Head]:
    """A chain of 1 to 4 blocks of 1 to 5 units, each linear [nonlinearity]."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    depth = draw(st.integers(1, 4))
    widths = [draw(st.integers(1, 5)) for _ in range(depth)] + [draw(st.integers(2, 4))]
    parts = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers: list[nn.Module] = [nn.Linear(a, b, bias=draw(st.booleans()), dtype=torch.float64)]
        if i < depth - 1:
            layers.append(draw(st.sampled_from(NONLINEARITIES))())
        parts.append(nn.Sequential(*layers))
    batch = draw(st.integers(1, 4))
    x = torch.randn(batch, widths[0], dtype=torch.float64)
    y = torch.randint(0, widths[-1], (batch,))
    head = draw(
        st.one_of(
            st.just(heads.Linear()),
            st.builds(heads.MLP, layers=st.integers(1, 2), width=st.integers(1, 5)),
        )
    )
    return Blocks(parts, example=x), x, y, head


@given(chains())
@settings(max_examples=60, deadline=None)
def test_random_chains(drawn: tuple[Blocks, Tensor, Tensor, Head]) -> None:
    blocks, x, y, head = drawn
    rule = rules.DGL(blocks, head=head)
    report = rule.backward(x, y)
    assert_same(grads(rule), naive(rule, x, y))
    assert torch.equal(report.logits, nn.Sequential(*blocks)(x))


@given(chains(), st.floats(0.01, 4.0), st.floats(0.01, 4.0))
@settings(max_examples=30, deadline=None)
def test_random_weights(drawn: tuple[Blocks, Tensor, Tensor, Head], a: float, b: float) -> None:
    """The gradient of a weighted sum is the weighted sum of the gradients."""
    blocks, x, y, head = drawn
    both = rules.Greedy(blocks, a * objectives.Classify(head) + b * MeanSquare())
    both.backward(x, y)
    got = [grads(block) for block in blocks]
    blocks.zero_grad()
    wanted = []
    h = x
    for i, block in enumerate(blocks):
        h = block(h.detach())
        last = i == len(blocks) - 1
        parts = [F.cross_entropy(h if last else both.objectives[i].predict(h), y)]
        if not last:
            parts = [a * parts[0], b * h.square().mean()]
        for part in parts:
            part.backward(retain_graph=True)
        wanted.append(grads(block))
    for g, w in zip(got, wanted, strict=True):
        assert_close(g, w)
