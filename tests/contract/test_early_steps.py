"""Parameters that are stepped within a backward pass."""

from __future__ import annotations

import copy
from collections import Counter

import networks
import pytest
import torch
from networks import ALL_RULES
from torch import nn

from layerwise import cut, heads, models, rules
from layerwise.costs.live_bytes import LiveBytes
from layerwise.rules.base import early, early_steps

OPTIMIZERS = {
    "SGD": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, fused=True),
    "AdamW": lambda ps: torch.optim.AdamW(ps, 0.01, fused=True),
}


@pytest.fixture(autouse=True)
def every_parameter(monkeypatch):
    monkeypatch.setattr(early, "SMALL", 0)


def test_which_rules_complete_gradients_in_one_pass():
    blocks = networks.mlp().blocks
    once = {name for name, make in ALL_RULES.items() if make(blocks).one_pass}
    assert {"backprop", "backprop_checkpointed", "dgl", "greedy", "aug_local"} <= once
    assert not {"dni", "feedback_alignment", "shared_readout", "forward_forward"} & once


@pytest.mark.parametrize("name", ALL_RULES)
def test_one_pass_accumulates_once(name):
    case = networks.mlp()
    rule = ALL_RULES[name](case.blocks)
    if not rule.one_pass:
        return
    found: Counter[int] = Counter()
    for k, p in enumerate(rule.parameters()):
        p.register_post_accumulate_grad_hook(lambda _, k=k: found.update([k]))
    rule.backward(case.x, case.y)
    assert found
    assert set(found.values()) == {1}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("network", ["cnn", "transformer"])
@pytest.mark.parametrize("name", ["backprop_checkpointed", "dgl", "greedy"])
def test_weights_are_those_of_steps_at_the_end(name, network, optimizer):
    case = networks.NETWORKS[network]()
    late = ALL_RULES[name](case.blocks)
    rule = copy.deepcopy(late)
    ours, theirs = optimizer(rule.parameters()), optimizer(late.parameters())
    for _ in range(3):
        theirs.zero_grad()
        late.backward(case.x, case.y)
        theirs.step()
        with early_steps(rule, [ours]):
            rule.backward(case.x, case.y)
        ours.step()  # nothing is left to step
        assert all(p.grad is None for p in rule.parameters())
    networks.assert_same(rule.state_dict(), late.state_dict())
    assert not any(p._post_accumulate_grad_hooks for p in rule.parameters())
    groups = [group["params"] for group in ours.param_groups]
    assert groups == [list(rule.parameters())]


def test_parameters_of_several_blocks_wait():
    layer = nn.Linear(4, 4)
    network = nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer, nn.ReLU()), nn.Linear(4, 3))
    blocks = cut(network, at=["2", "3"], example=torch.randn(2, 4))
    assert not rules.DGL(blocks).one_pass
    assert rules.Backprop(blocks).one_pass
    rule = rules.DGL(blocks)
    with early_steps(rule, [torch.optim.SGD(rule.parameters(), 0.1)]):
        rule.backward(torch.randn(5, 4), torch.randint(3, (5,)))
    assert all(p.grad is not None for p in rule.parameters())


def test_only_one_gradient_of_a_block_exists():
    width, layers = 64, 4
    network = models.mlp((1, 8, 8), 10, layers=layers, width=width)
    x, y = torch.randn(2, 1, 8, 8), torch.randint(10, (2,))
    rule = rules.DGL(cut(network, at=["classifier"], example=x), head=heads.Linear())
    step = torch.optim.SGD(rule.parameters(), 0.1)

    def peak(*optimizers):
        with LiveBytes(rule.parameters()) as live, early_steps(rule, optimizers):
            rule.backward(x, y)
        step.zero_grad()
        return live.peak("gradients").bytes

    one, block = 4 * width * width, 4 * layers * (width * width + width)
    assert peak() >= block
    assert one <= peak(step) < 2 * one
