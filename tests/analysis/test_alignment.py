"""Angles between gradients: known ones, and that the rule does not notice."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import nn

from layerwise import Blocks, heads, objectives, rules
from layerwise.analysis import gradient_alignment


@pytest.mark.parametrize("make", networks.NETWORKS.values(), ids=networks.NETWORKS)
def test_backprop_with_itself(make):
    """Exactly: not the square root of a rounding error, as the arc cosine has it."""
    case = make(dropout=0.3)
    for a in gradient_alignment(rules.Backprop(case.blocks), case.x, case.y):
        assert (a.angle, a.ratio) == (0.0, 1.0)


def _linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    return layer


def _blocks() -> Blocks:
    x = torch.ones(1, 1, dtype=torch.float64)
    return Blocks([_linear([[1.0]] * 3), _linear([[0.0] * 3, [1.0, -1.0, 0.0]])], example=x)


def test_by_hand():
    """x = 1, so that the gradient of block 0's weights (1, 1, 1)' is that of its output h.

    The network's scores are r h with rows r_0 = 0, r_1 = (1, -1, 0): both 0, each class has
    probability 1/2, and with label 0 the gradient of h is (r_1 - r_0) / 2 = (1, -1, 0) / 2.
    The head's rows are 0 and (0, 3, -3): likewise (0, 3, -3) / 2.
    cos = -3 / (sqrt 2 * sqrt 18) = -1/2: 120 degrees; ratio sqrt 18 / sqrt 2 = 3.
    """
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    rule = rules.DGL(_blocks(), head=lambda *shapes: _linear([[0.0] * 3, [0.0, 3.0, -3.0]]))
    first, last = gradient_alignment(rule, x, y)
    assert first.angle == pytest.approx(120)
    assert first.ratio == pytest.approx(3)
    assert (last.angle, last.ratio) == (0, 1)


def test_scale_and_criterion():
    """Ten times the loss is ten times both gradients; a backprop of twice the loss halves the
    ratio."""
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    rule = rules.DGL(_blocks(), head=lambda *shapes: _linear([[0.0] * 3, [0.0, 3.0, -3.0]]))
    scaled, _ = gradient_alignment(rule, x, y, scale=lambda loss: 10 * loss)
    assert scaled.ratio == pytest.approx(3)
    double, last = gradient_alignment(
        rule, x, y, criterion=lambda z, y: 2 * objectives.cross_entropy(z, y)
    )
    assert double.ratio == pytest.approx(1.5)
    assert last.ratio == pytest.approx(0.5)


def test_the_criterion_is_the_rules_own():
    def smooth(z, y):
        return nn.functional.cross_entropy(z, y, label_smoothing=0.4)

    case = networks.mlp()
    for a in gradient_alignment(rules.Backprop(case.blocks, criterion=smooth), case.x, case.y):
        assert (a.angle, a.ratio) == (0, 1)


def test_what_is_not_trained_has_no_angle():
    case = networks.mlp()
    *before, last = gradient_alignment(rules.LastBlock(case.blocks), case.x, case.y)
    assert before == [None, None]
    assert (last.angle, last.ratio) == (0, 1)
    for p in case.blocks[2].parameters():
        p.requires_grad_(False)
    assert gradient_alignment(rules.Backprop(case.blocks), case.x, case.y)[2] is None


def test_a_part_without_gradient_counts_as_nought():
    """A rule that trains the weight alone, where backprop has a bias, too."""

    class WeightAlone(rules.Backprop):
        def backward(self, x, y, **options):
            report = super().backward(x, y, **options)
            for block in self.blocks:
                block.bias.grad = None
            return report

    x, y = torch.ones(4, 2), torch.tensor([0, 1, 1, 1])
    blocks = Blocks([nn.Linear(2, 2)], example=x)
    # All inputs are (1, 1): the gradient is g for the bias and (g, g) for the weight, so that the
    # weight has 2 of 3 parts of the squared norm: cos = ratio = sqrt(2/3).
    (a,) = gradient_alignment(WeightAlone(blocks), x, y)
    assert a.ratio == pytest.approx((2 / 3) ** 0.5)
    assert a.angle == pytest.approx(35.2643897)


def test_of_several_views_backprop_sees_the_first():
    case = networks.cnn()
    rule = rules.Greedy(case.blocks, objectives.NTXent(heads.Projector(dim=4)))
    *_, last = gradient_alignment(rule, torch.cat([case.x, case.x.flip(-1)]), case.y)
    assert 0 <= last.angle < 180


@pytest.mark.parametrize(
    "name",
    [  # further ways of making a rule are slow
        pytest.param(name, marks=[pytest.mark.slow] * (number > 0))
        for ways in networks.RULES.values()
        for number, name in enumerate(ways)
    ],
)
def test_the_rule_does_not_notice(name):
    """With dropout, BatchNorm and gradients of a batch before; the next step has the same bits."""

    def ready():
        torch.manual_seed(0)
        case = networks.cnn(dropout=0.3)
        rule = networks.ALL_RULES[name](case.blocks)
        rule.backward(case.x, case.y)
        rule.blocks[1].eval()
        return case, rule, torch.get_rng_state()

    case, rule, random = ready()
    state = {k: v.clone() for k, v in rule.state_dict().items()}
    gradients, modes = networks.grads(rule), [m.training for m in rule.modules()]
    versions = [p._version for p in rule.parameters()]
    found = gradient_alignment(rule, case.x, case.y)
    assert len(found) == len(rule.blocks)
    assert any(a is not None for a in found)
    networks.assert_same(dict(rule.state_dict()), state)
    networks.assert_same(networks.grads(rule), gradients)
    assert [m.training for m in rule.modules()] == modes
    assert [p._version for p in rule.parameters()] == versions
    assert torch.equal(torch.get_rng_state(), random)

    rule.backward(case.x, case.y)
    other_case, other, random = ready()
    torch.set_rng_state(random)
    other.backward(other_case.x, other_case.y)
    networks.assert_same(networks.grads(rule), networks.grads(other))
    networks.assert_same(dict(rule.state_dict()), dict(other.state_dict()))
