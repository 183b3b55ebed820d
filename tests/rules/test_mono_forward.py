"""Mono-Forward is decoupled greedy learning with a linear head, and predicts in two ways."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from networks import NETWORKS, assert_same, grads
from torch import nn
from torch.nn import functional as F

from layerwise import Blocks, heads, rules

LN3 = math.log(3)


def test_one_step_by_hand() -> None:
    """Layer 1: a = relu(x) = (1, 1) of x = (1, 1) with W1 the identity; M = [[ln 3, 0], [1, -1]].

    G = a M^T = (ln 3, 0), softmax (3/4, 1/4), label 1: loss ln 4, d = (3/4, -3/4), so
    dM = d a^T = [[3/4, 3/4], [-3/4, -3/4]] and dW1 = (M^T d) x^T = (3/4) (ln 3 - 1, 1) (1, 1)^T.
    """
    layer = nn.Sequential(nn.Linear(2, 2, bias=False, dtype=torch.float64), nn.ReLU())
    layer[0].weight.data = torch.eye(2, dtype=torch.float64)
    x = torch.ones(1, 2, dtype=torch.float64)
    last = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    rule = rules.MonoForward(Blocks([layer, last], example=x))
    ((name, projection),) = rule.objectives[0].named_parameters()
    assert name.endswith("weight")
    projection.data = torch.tensor([[LN3, 0.0], [1.0, -1.0]], dtype=torch.float64)
    report = rule.backward(x, torch.tensor([1]))
    g = 3 / 4 * (LN3 - 1)
    wanted = {
        projection: [[3 / 4, 3 / 4], [-3 / 4, -3 / 4]],
        layer[0].weight: [[g, g], [3 / 4, 3 / 4]],
    }
    for parameter, gradient in wanted.items():
        gradient = torch.tensor(gradient, dtype=torch.float64)
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-14, rtol=0)
    torch.testing.assert_close(report.local_losses[0].item(), math.log(4))


@pytest.mark.parametrize("network", NETWORKS)
def test_is_dgl_with_a_linear_head_without_bias(network: str) -> None:
    case = NETWORKS[network]()
    rule = rules.MonoForward(case.blocks).eval()
    dgl = rules.DGL(case.blocks, head=heads.Linear(pool=None, bias=False)).eval()
    dgl.load_state_dict(rule.state_dict())
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    dgl.backward(case.x, case.y)
    assert_same(got, grads(dgl))


def test_goodness_is_the_projection_of_all_activations() -> None:
    """Of feature maps, too: every position of every channel has its weight."""
    case = networks.plain_cnn()
    rule = rules.MonoForward(case.blocks)
    a = case.x
    exits = rule.exits(case.x)
    for k, block in enumerate(list(case.blocks)[:-1]):
        a = block(a)
        (projection,) = rule.objectives[k].parameters()
        assert projection.shape == (networks.CLASSES, a[0].numel())
        torch.testing.assert_close(exits[k], F.linear(a.flatten(1), projection))
    assert torch.equal(exits[-1], rule(case.x))
