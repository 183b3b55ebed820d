"""Equilibrium propagation: one nudge by hand, and its limits."""

from __future__ import annotations

import copy

import networks
import pytest
import torch
from networks import NETWORKS, assert_close, grads
from torch import Tensor, nn

from layerwise import Blocks, rules

"""Three numbers in a row, w = (1, 2, 1), x = 1 with target 1, loss half the square: h1 = 1, h2 = 2,
z = 2. e3 = z - y, e2 = w2 h1 - h2, e1 = w1 x - h1; two steps of 1/2.

beta = 1/2:
    1:  h2 = 2 + (0 - 1/2) / 2 = 1.75;              beta e3 = 0.375, e2 = 0.25, e1 = 0
    2:  h2 = 1.75 + (0.25 - 0.375) / 2 = 1.6875,    h1 = 1 + (0 - 2 * 0.25) / 2 = 0.75
    e3 = 0.6875, e2 = 1.5 - 1.6875 = -0.1875, e1 = 0.25
    gradients e1 x / beta = 0.5, e2 h1 / beta = -0.28125, e3 h2 = 1.16015625
beta = -1/2:
    1:  h2 = 2.25;                                  beta e3 = -0.625, e2 = -0.25, e1 = 0
    2:  h2 = 2.25 + (-0.25 + 0.625) / 2 = 2.4375,   h1 = 1.25
    e3 = 1.4375, e2 = 2.5 - 2.4375 = 0.0625, e1 = -0.25
    gradients 0.5, -0.15625, 3.50390625
"""
GOLDEN = {False: (0.5, -0.28125, 1.16015625), True: (0.5, -0.21875, 2.33203125)}


@pytest.mark.parametrize("centred", GOLDEN)
def test_golden(centred: bool) -> None:
    parts = [nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(3)]
    for part, w in zip(parts, (1.0, 2.0, 1.0), strict=True):
        part.weight.data.fill_(w)
    x = torch.ones(1, 1).double()

    def half_square(z: Tensor, y: Tensor) -> Tensor:
        return (z - y).square().mean() / 2

    rule = rules.EquilibriumPropagation(Blocks(parts), 0.5, 2, 0.5, centred, criterion=half_square)
    rule.backward(x, x)
    for part, wanted in zip(parts, GOLDEN[centred], strict=True):
        assert part.weight.grad.item() == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_whole_nudge_is_predictive_coding(network: str) -> None:
    case = NETWORKS[network](torch.float64)
    coding = rules.PredictiveCoding(copy.deepcopy(case.blocks), 5, 0.2)
    coding.backward(case.x, case.y)
    rule = rules.EquilibriumPropagation(case.blocks, 1.0, 5, 0.2, centred=False)
    rule.backward(case.x, case.y)
    assert_close(grads(rule), grads(coding), atol=1e-14)


@pytest.mark.parametrize("network", ["mlp", "plain_cnn"])
@pytest.mark.parametrize(("centred", "order"), [(False, 1), (True, 2)])
def test_a_small_nudge_is_backprop(network: str, centred: bool, order: int) -> None:
    """The error falls with beta, or with its square: a tenth of it, a tenth or a hundredth."""
    case = getattr(networks, network)(torch.float64)
    for m in case.blocks.modules():
        for name, child in m.named_children():
            if isinstance(child, nn.ReLU):  # smooth, so that there is an order
                setattr(m, name, nn.Tanh())
    backprop = rules.Backprop(copy.deepcopy(case.blocks))
    backprop.backward(case.x, case.y)
    wanted = torch.cat([g.flatten() for g in grads(backprop).values()])
    errors = []
    for beta in (1e-2, 1e-3):
        rule = rules.EquilibriumPropagation(case.blocks, beta, 60, 0.5, centred)
        rule.zero_grad()
        rule.backward(case.x, case.y)
        got = torch.cat([g.flatten() for g in grads(rule).values()])
        errors.append(((got - wanted).norm() / wanted.norm()).item())
    assert errors[0] < 0.05
    assert errors[1] / errors[0] == pytest.approx(10.0**-order, rel=0.2)
