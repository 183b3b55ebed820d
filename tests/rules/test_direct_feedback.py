"""Direct feedback alignment and direct random target projection: limits, naive implementations,
what reaches whom."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import networks
import pytest
import torch
from networks import NETWORKS, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, Rule, rules

MAKERS = [rules.DirectFeedbackAlignment, rules.DirectRandomTargetProjection]


def linear_network(depth: int) -> tuple[Blocks, Tensor, Tensor]:
    widths = [4, 5, 6, 7, 3][-depth - 1 :]
    parts = [nn.Linear(a, b).double() for a, b in itertools.pairwise(widths)]
    x = torch.randn(6, widths[0]).double()
    return Blocks(parts, example=x), x, torch.randint(3, (6,))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_with_the_networks_own_matrix_it_is_backprop(depth: int) -> None:
    """On a linear network dz/dh_k is W_K ... W_{k+1}, whatever the input."""
    blocks, x, y = linear_network(depth)
    rule = rules.DirectFeedbackAlignment(blocks)
    matrix = torch.eye(3).double()
    for k in reversed(range(depth - 1)):
        matrix = matrix @ blocks[k + 1].weight.detach()
        rule.feedback.get_buffer(str(k)).copy_(matrix)
    rule.backward(x, y)
    got = grads(rule)
    rule.zero_grad()
    F.cross_entropy(blocks(x), y).backward()
    assert_close(got, grads(rule), atol=1e-15)


def _matrix(rule: Rule, k: int, units: int) -> Tensor:
    if "all" in dict(rule.feedback.named_buffers()):
        return rule.feedback.get_buffer("all")[:, :units] * 0.7 / math.sqrt(units)
    return rule.feedback.get_buffer(str(k))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_against_a_naive_implementation(
    network: str, make: Callable[..., Rule], shared: bool
) -> None:
    case = NETWORKS[network](torch.float64)
    rule = make(case.blocks, scale=0.7, shared=shared)
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    outputs = [case.x]
    for block in case.blocks:
        outputs.append(block(outputs[-1].detach()))
    loss = F.cross_entropy(outputs[-1], case.y)
    (e,) = torch.autograd.grad(loss, outputs[-1], retain_graph=True)
    if make is rules.DirectRandomTargetProjection:
        e = F.one_hot(case.y, 3).double() / 6
    for k, h in enumerate(outputs[1:-1]):
        flat = h.flatten(1) if network != "transformer" else h.flatten(0, 1)
        matrix = _matrix(rule, k, flat.shape[1])
        asked = torch.zeros_like(h)
        for b in range(6):
            for t in range(h.shape[1]) if network == "transformer" else [slice(None)]:
                asked[b, t] += sum(e[b, c] * matrix[c] for c in range(3)).view(asked[b, t].shape)
        (h * asked).sum().backward()
    loss.backward()
    assert_close(got, grads(rule), atol=1e-14)


def test_a_label_for_every_token() -> None:
    """Each token's own error, or its own label, but for those that ask for nothing."""
    layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True).double()
    parts = [nn.Embedding(11, 6).double(), layer, nn.Linear(6, 11).double()]
    x, y = torch.randint(0, 11, (4, 7)), torch.randint(0, 11, (4, 7))
    blocks = Blocks(parts, example=x)
    for make in MAKERS:
        rule = make(blocks)
        rule.backward(x, y)
        got = grads(rule)
        rule.zero_grad()
        h = [parts[0](x)]
        for part in parts[1:]:
            h.append(part(h[-1].detach()))
        e = (h[2].softmax(-1) - F.one_hot(y, 11)) / 28
        if make is rules.DirectRandomTargetProjection:
            e = F.one_hot(y, 11).double() / 28
        for k in (0, 1):
            asked = torch.einsum(
                "btc,cd->btd", e.detach().double(), rule.feedback.get_buffer(str(k))
            )
            (h[k] * asked).sum().backward()
        F.cross_entropy(h[2].transpose(1, 2), y).backward()
        assert_close(got, grads(rule), atol=1e-14)
        rule.zero_grad()

    y = torch.full((4, 7), -100)
    y[0, 0] = 3
    rule.backward(x, y)
    first = rule.blocks[0].weight.grad
    assert [bool(row.any()) for row in first] == [bool(i == x[0, 0]) for i in range(11)]


def test_what_reaches_whom() -> None:
    """Later weights reach a block through the error alone; under target projection not at all."""
    for make, reached in zip(MAKERS, (True, False), strict=True):
        case = networks.cnn(torch.float64)
        rule = make(case.blocks)
        rule.backward(case.x, case.y)
        before = grads(rule.blocks[0])
        rule.zero_grad()
        with torch.no_grad():
            for p in rule.parameters_of(2):
                p.add_(torch.randn_like(p))
        rule.backward(case.x, case.y)
        same = [torch.equal(g, before[n]) for n, g in grads(rule.blocks[0]).items()]
        assert not any(same) if reached else all(same)


def test_graphs_wait_for_the_error() -> None:
    """One by one they are gone when their block is done."""
    case = networks.plain_cnn()
    rule = rules.DirectFeedbackAlignment(case.blocks)
    alive: set[int] = set()
    counts: list[int] = []

    class Held:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        rule.backward(case.x, case.y, on_block=lambda i: counts.append(len(alive)))
    assert counts[0] > counts[1] > counts[2] == 0


def test_a_block_that_changes_its_input() -> None:
    parts = [nn.Linear(6, 5), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3))]
    x, y = torch.randn(4, 6), torch.randint(0, 3, (4,))
    for make in MAKERS:
        rule = make(Blocks(parts, example=x))
        rule.backward(x, y)
        got = grads(rule)
        rule.zero_grad()
        parts[1][0].inplace = False
        rule.backward(x, y)
        assert_same(got, grads(rule))
        rule.zero_grad()
        parts[1][0].inplace = True


def test_matrices() -> None:
    case = networks.cnn()
    sizes = [math.prod(shape) for shape in case.blocks.shapes[:-1]]
    for make in MAKERS:
        own = dict(make(case.blocks, scale=3.0).feedback.named_buffers())
        assert {n: tuple(b.shape) for n, b in own.items()} == {
            str(k): (3, size) for k, size in enumerate(sizes)
        }
        for k, size in enumerate(sizes):
            bound = 3 / math.sqrt(size)
            assert 0.8 * bound < own[str(k)].abs().max() <= bound
        (one,) = make(case.blocks, shared=True).feedback.buffers()
        assert one.shape == (3, max(sizes))


def test_bad_input() -> None:
    for make in MAKERS:
        name = make.__name__
        with pytest.raises(ValueError, match=rf"{name}\(scale=0\): give a positive number"):
            make(networks.mlp().blocks, scale=0)
        with pytest.raises(ValueError, match="give an example"):
            make(Blocks([nn.Linear(6, 3), nn.Linear(3, 3)]))
        parts = [nn.Linear(6, 6), nn.Unflatten(1, (2, 3)), nn.Linear(3, 3)]
        with pytest.raises(
            ValueError, match=rf"{name}: the network gives scores for every token"
        ) as e:
            make(Blocks(parts, example=torch.randn(2, 6)))
        assert "\n" not in str(e.value)
