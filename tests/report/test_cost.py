"""What a rule costs: FLOPs by hand, and nothing is changed by measuring."""

from __future__ import annotations

import copy
import json

import networks
import pytest
import torch
from networks import ALL_RULES, NETWORKS, RULES, assert_same, grads
from torch import nn

from layerwise import Blocks, heads, rules
from layerwise.costs.blocks import Costs
from layerwise.objectives import Classify

D, CLASSES = 16, 3


def _blocks() -> Blocks:
    layers = [nn.Sequential(nn.Linear(D, D), nn.ReLU()) for _ in range(2)]
    return Blocks([*layers, nn.Linear(D, CLASSES)], example=torch.zeros(2, D))


def test_flops_of_a_step() -> None:
    """A layer's forward is one sample's 2 I O; h, dW and dx cost that each. Backpropagation: no dx
    in the first layer. DGL: none in any block, but a head costs three."""
    layer, last = 2 * D * D, 2 * D * CLASSES
    costs = Costs.of(rules.DGL(_blocks(), head=heads.Linear()))
    assert costs.flops == 2 * layer + last
    assert [block.head_flops for block in costs.blocks] == [last, last, 0]
    assert costs.backprop_flops == 5 * layer + 3 * last
    assert costs.step_head_flops == 2 * 3 * last
    assert costs.step_flops == 4 * layer + 2 * last + 2 * 3 * last
    costs = Costs.of(rules.LastBlock(_blocks()))
    assert costs.step_flops == 2 * layer + 2 * last
    costs = Costs.of(rules.Backprop(_blocks()))
    assert costs.step_flops == costs.backprop_flops
    assert costs.step_head_flops == 0


def test_flops_of_two_heads_on_a_block() -> None:
    """Windows of two blocks, and losses of each block alone. The first block has one head, which
    costs three. The second has two: both forward, the window's back to the block's input, and
    then both back, to their weights and to the block."""
    last = 2 * D * CLASSES
    rule = rules.HPFF(_blocks(), Classify(heads.Linear()), overlap=1, independent=0.5)
    costs = Costs.of(rule)
    assert [block.head_flops for block in costs.blocks] == [last, 2 * last, 0]
    assert costs.step_head_flops == 3 * last + (2 + 1 + 4) * last


def test_flops_of_phases() -> None:
    """The mean over three phases, in each of which one block learns: it and its head forward and
    to their weights, the head back to the block; those before it forward, those behind not at
    all."""
    layer, last = 2 * D * D, 2 * D * CLASSES
    rule = rules.Sequential(_blocks(), Classify(heads.Linear()))
    rule.begin(1)
    costs = Costs.of(rule)
    phases = [2 * layer + 3 * last, (1 + 2) * layer + 3 * last, 2 * layer + 2 * last]
    assert costs.step_flops == sum(phases) // 3
    assert costs.step_head_flops == 2 * 3 * last // 3
    assert [block.head_flops for block in costs.blocks] == [last, last, 0]
    assert rule.active == 1


# Statistics, and random numbers; a rule's further ways meet the statistics.
@pytest.mark.parametrize(
    ("network", "name"),
    [
        *(("resnet", name) for name in ALL_RULES),
        *(("transformer", next(iter(ways))) for ways in RULES.values()),
    ],
)
def test_nothing_is_changed(network: str, name: str) -> None:
    case = NETWORKS[network](dropout=0.2)
    rule = ALL_RULES[name](case.blocks).eval()
    rule.backward(case.x, case.y)
    state, before = copy.deepcopy(rule.state_dict()), grads(rule)
    rng = torch.get_rng_state()
    costs = Costs.of(rule)
    assert torch.equal(torch.get_rng_state(), rng)
    assert_same(dict(rule.state_dict()), state)
    assert_same(grads(rule), before)
    assert not any(m.training for m in rule.modules())
    of_auxiliary = {
        p for i in range(len(rule.blocks)) for module in rule.auxiliary(i)
        for p in module.parameters()
    }  # fmt: skip
    assert costs.head_parameters == sum(p.numel() for p in of_auxiliary)


def test_a_file() -> None:
    costs = Costs.of(rules.DGL(networks.mlp().blocks))
    assert Costs.from_json(costs.json()) == costs
    old = json.dumps(json.loads(costs.json())["blocks"])  # as it was before steps were measured
    assert Costs.from_json(old) == Costs(costs.blocks)
