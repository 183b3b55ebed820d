"""Successive gradient reconciliation: its limit, a naive implementation, what reaches whom."""

from __future__ import annotations

import copy

import networks
import pytest
import torch
from networks import NETWORKS, SMALL_HEAD, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from layerwise import Blocks, rules


@pytest.mark.parametrize("network", NETWORKS)
def test_without_weight_it_is_dgl(network: str) -> None:
    case = NETWORKS[network](dropout=0.3)
    rule = rules.SGR(case.blocks, 0.0, SMALL_HEAD)
    dgl = rules.DGL(copy.deepcopy(case.blocks), head=SMALL_HEAD)
    dgl.load_state_dict(rule.state_dict())
    start = torch.get_rng_state()
    dgl.backward(case.x, case.y)
    end = torch.get_rng_state()
    torch.set_rng_state(start)
    rule.backward(case.x, case.y)
    assert torch.equal(torch.get_rng_state(), end)
    assert_same(grads(rule), grads(dgl))
    assert_same(dict(rule.named_buffers()), dict(dgl.named_buffers()))


def naive(rule: rules.SGR, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Block by block, from the equation; `autograd.grad` by parameter."""
    names = {p: n for n, p in rule.named_parameters()}
    found: dict[str, Tensor] = {}
    n, wanted = len(x), None
    for i, block in enumerate(rule.blocks):
        x = x.detach().requires_grad_()
        h = block(x)
        loss = F.cross_entropy(rule.objectives[i].predict(h), y)
        (asked,) = torch.autograd.grad(loss, x, create_graph=True)
        (asks,) = torch.autograd.grad(loss, h, retain_graph=True)
        if wanted is not None:
            loss = (
                loss + rule.weight * sum((n * asked - wanted)[b].norm() ** 2 for b in range(n)) / n
            )
        parameters = rule.parameters_of(i)
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            found[names[p]] = g
        x, wanted = h, n * asks.detach()
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_against_a_naive_implementation(network: str) -> None:
    case = NETWORKS[network](torch.float64)
    rule = rules.SGR(case.blocks, 0.7, SMALL_HEAD)
    with sdpa_kernel(SDPBackend.MATH):
        wanted = naive(rule, case.x, case.y)
    rule.backward(case.x, case.y)
    assert_close(grads(rule), wanted, atol=1e-12, rtol=1e-10)
    dgl = rules.DGL(case.blocks, head=SMALL_HEAD)
    dgl.load_state_dict(rule.state_dict())
    rule.zero_grad()
    dgl.backward(case.x, case.y)
    last = f"blocks.{len(case.blocks) - 1}."
    assert any(
        not torch.allclose(g, wanted[n], rtol=1e-3) for n, g in grads(dgl).items() if last in n
    )


def test_gradients_already_reconciled_are_dgl() -> None:
    """Block 2 is the first head itself: it asks of its input what that asks."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)).double()
    x, y = torch.randn(5, 4).double(), torch.randint(0, 3, (5,))
    found = []
    for weight in (0.0, 5.0):
        rule = rules.SGR(Blocks(copy.deepcopy(list(net)), example=x), weight, lambda a, b: net[1])
        rule.backward(x, y)
        found.append(grads(rule.blocks))
    assert_close(found[1], found[0], atol=1e-14)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_reaches_whom(network: str) -> None:
    """A head's weights reach its own block and the next, and no other; later blocks none."""
    case = NETWORKS[network](torch.float64)
    rule = rules.SGR(case.blocks, 0.3, SMALL_HEAD).eval()

    def each() -> list[Tensor]:
        rule.zero_grad()
        rule.backward(case.x, case.y)
        k = range(len(rule.blocks))
        return [torch.cat([p.grad.flatten() for p in rule.blocks[i].parameters()]) for i in k]

    before = each()
    for i in range(len(rule.blocks) - 1):
        old = copy.deepcopy(rule.state_dict())
        with torch.no_grad():
            for p in rule.objectives[i].parameters():
                p.add_(torch.randn_like(p))
        moved = [not torch.equal(a, b) for a, b in zip(each(), before, strict=True)]
        assert moved == [j in (i, i + 1) for j in range(len(moved))]
        rule.load_state_dict(old)


def test_a_block_that_starts_in_place() -> None:
    found = []
    for inplace in (False, True):
        torch.manual_seed(1)
        parts = [nn.Linear(3, 4), nn.Sequential(nn.ReLU(inplace), nn.Linear(4, 3))]
        x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
        rule = rules.SGR(Blocks(parts, example=x))
        rule.backward(x, y)
        found.append(grads(rule))
    assert_same(found[1], found[0])


def test_attention_is_put_back() -> None:
    case = networks.transformer()
    attention = F.scaled_dot_product_attention
    rule = rules.SGR(case.blocks, 0.3)
    rule.backward(case.x, case.y)
    assert F.scaled_dot_product_attention is attention

    def fails(*_: object) -> None:
        raise ArithmeticError

    rule.objectives[1].criterion = fails
    with pytest.raises(ArithmeticError):
        rule.backward(case.x, case.y)
    assert F.scaled_dot_product_attention is attention


def test_it_reconciles() -> None:
    """The second of two blocks learns to ask what a fixed first head asks."""
    left = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        case = networks.mlp_norm(torch.float64, blocks=2)
        rule = rules.SGR(case.blocks, weight, SMALL_HEAD)
        optimizer = torch.optim.Adam(rule.parameters_of(1), lr=1e-2)
        for _ in range(100):
            rule.zero_grad()
            rule.backward(case.x, case.y)
            optimizer.step()
        h = case.blocks[0](case.x).detach().requires_grad_()
        (wanted,) = torch.autograd.grad(F.cross_entropy(rule.objectives[0].predict(h), case.y), h)
        (asked,) = torch.autograd.grad(F.cross_entropy(case.blocks[1](h), case.y), h)
        left.append(float((asked - wanted).norm() / wanted.norm()))
    assert left[1] < 0.9 * left[0]


def test_bad_weight() -> None:
    for weight, says in ((-1.0, "give at least 0"), (float("nan"), "give a finite number")):
        with pytest.raises(ValueError, match=rf"SGR\(weight=.*{says}"):
            rules.SGR(networks.mlp().blocks, weight)
