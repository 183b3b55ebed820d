"""Deep supervision: its limit, and that it is one graph."""

from __future__ import annotations

import copy

import networks
import pytest
import torch
from networks import NETWORKS, SMALL_HEAD, assert_close, assert_same, grads
from torch import nn
from torch.nn import functional as F

from layerwise import Blocks, rules


@pytest.mark.parametrize("network", NETWORKS)
def test_without_weight_it_is_backprop(network: str) -> None:
    """Bit for bit, and no head is run."""
    case = NETWORKS[network](dropout=0.3)
    rule = rules.DeepSupervision(case.blocks, 0.0, SMALL_HEAD)
    backprop = rules.Backprop(copy.deepcopy(case.blocks))
    start = torch.get_rng_state()
    for _ in range(2):
        wanted = backprop.backward(case.x, case.y)
    torch.set_rng_state(start)
    for _ in range(2):
        report = rule.backward(case.x, case.y)
    assert_same(grads(rule), grads(backprop))
    assert_same(dict(rule.blocks.named_buffers()), dict(backprop.blocks.named_buffers()))
    assert torch.equal(report.loss, wanted.loss)
    assert report.local_losses[:-1] == (None,) * (len(case.blocks) - 1)


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_the_sum_of_all_losses(network: str) -> None:
    case = NETWORKS[network](torch.float64)
    rule = rules.DeepSupervision(case.blocks, 0.3, SMALL_HEAD)
    report = rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    h, losses = case.x, []
    for i, block in enumerate(case.blocks):
        h = block(h)
        losses.append(F.cross_entropy(rule.objectives[i].predict(h), case.y))
    (losses[-1] + sum(0.3 * loss for loss in losses[:-1])).backward()
    assert_close(got, grads(rule))
    for loss, wanted in zip(report.local_losses, losses, strict=True):
        torch.testing.assert_close(loss, wanted.detach())


def test_the_gradient_is_backprops_and_the_heads() -> None:
    """Of the first block: linear in the weight."""
    case = networks.cnn(torch.float64)
    rule = rules.DeepSupervision(case.blocks, 0.0, SMALL_HEAD).eval()
    found = {}
    for weight in (0.0, 0.3, 1.0):
        rule.weight = weight
        rule.zero_grad()
        rule.backward(case.x, case.y)
        found[weight] = grads(rule.blocks)
    mixed = {n: 0.7 * found[0.0][n] + 0.3 * found[1.0][n] for n in found[0.3]}
    assert_close(found[0.3], mixed, atol=1e-14)


def test_a_block_that_starts_in_place() -> None:
    found = []
    for inplace in (False, True):
        torch.manual_seed(1)
        parts = [nn.Linear(3, 4), nn.Sequential(nn.ReLU(inplace), nn.Linear(4, 3))]
        x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
        rule = rules.DeepSupervision(Blocks(parts, example=x))
        rule.backward(x, y)
        found.append(grads(rule))
    assert_same(found[1], found[0])


def test_bad_weight() -> None:
    with pytest.raises(ValueError, match=r"DeepSupervision\(weight=-1\): give at least 0"):
        rules.DeepSupervision(networks.mlp().blocks, -1)


@pytest.mark.parametrize("network", NETWORKS)
def test_heads_of_a_network_that_backpropagation_trains(network: str) -> None:
    """The network's steps are those of `Backprop`, bit for bit; a head learns from its own loss."""
    case = NETWORKS[network](dropout=0.3)
    rule = rules.DeepSupervision(case.blocks, 0.5, SMALL_HEAD, detach=True)
    backprop = rules.Backprop(copy.deepcopy(case.blocks))
    optimizers = [torch.optim.SGD(r.parameters(), 0.1, momentum=0.9) for r in (backprop, rule)]
    start = torch.get_rng_state()
    for of, optimizer in zip((backprop, rule), optimizers, strict=True):
        torch.set_rng_state(start)
        for _ in range(3):
            optimizer.zero_grad()
            report = of.backward(case.x, case.y)
            optimizer.step()
    assert_same(dict(rule.blocks.state_dict()), dict(backprop.blocks.state_dict()))
    assert_same(grads(rule.blocks), grads(backprop.blocks))
    assert None not in report.local_losses

    rule.eval().zero_grad()
    rule.backward(case.x, case.y)
    k = 0
    head = rule.objectives[k]
    got = grads(head)
    with torch.no_grad():
        h = rule.activities(case.x)[k]
    head.zero_grad()
    (0.5 * F.cross_entropy(head.predict(h), case.y)).backward()
    assert_close(got, grads(head))
