"""Angles between feedback matrices and weights."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from torch import nn

from layerwise import Blocks, rules
from layerwise.analysis import feedback_angles, pseudo_inverse_angles


def linear(weight: list[list[float]], matrix: list[list[float]]) -> rules.FeedbackAlignment:
    w = torch.tensor(weight)
    parts = [nn.Linear(2, w.shape[1]), nn.Linear(w.shape[1], w.shape[0], bias=False)]
    rule = rules.FeedbackAlignment(Blocks(parts, example=torch.randn(2, 2), names=["in", "out"]))
    parts[1].weight.data.copy_(w)
    rule.matrices()[parts[1].weight].copy_(torch.tensor(matrix))
    return rule


def test_by_hand() -> None:
    """W = [[2, 0], [0, 1]]: (2, 0, 0, 1) and B = [[0, 0], [0, 3]] have cos = 1 / sqrt 5. The
    pseudo-inverse is [[1/2, 0], [0, 1]], and with B^T its cos is 1 / sqrt(1/4 + 1)."""
    rule = linear([[2.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 3.0]])
    cos = 1 / math.sqrt(5)
    assert feedback_angles(rule) == {"out.weight": pytest.approx(math.degrees(math.acos(cos)))}
    cos = 1 / math.sqrt(5 / 4)
    wanted = pytest.approx(math.degrees(math.acos(cos)))
    assert pseudo_inverse_angles(rule) == {"out.weight": wanted}


def test_a_row() -> None:
    """W = [[1, 2, 2]]: its pseudo-inverse is W^T / 9, so a B of [[2, 4, 4]] has angle 0 to both;
    [[-1, -2, -2]] has 180, and 0 has none."""
    for matrix, angle in ([[2.0, 4.0, 4.0]], 0.0), ([[-1.0, -2.0, -2.0]], 180.0):
        rule = linear([[1.0, 2.0, 2.0]], matrix)
        for found in feedback_angles(rule), pseudo_inverse_angles(rule):
            assert found["out.weight"] == pytest.approx(angle, abs=1e-6)
    assert math.isnan(feedback_angles(linear([[1.0, 2.0, 2.0]], [[0.0] * 3]))["out.weight"])


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_of_every_rule(network: str) -> None:
    """Of signs below 90, of random matrices about 90, and with the weights 0."""
    case = networks.NETWORKS[network]()
    signs = rules.SignSymmetry(case.blocks)
    drawn = rules.SignSymmetry(case.blocks, random_magnitude=True, redraw=True)
    aligned = rules.KolenPollack(case.blocks)
    for weight, matrix in aligned.matrices().items():
        matrix.data.copy_(weight.data)
    names = feedback_angles(rules.FeedbackAlignment(case.blocks)).keys()
    assert len(names) == sum(map(len, signs.sending))
    rng = torch.get_rng_state()
    for rule, least, most in (signs, 5, 60), (drawn, 10, 75), (aligned, 0, 1e-9):
        found = feedback_angles(rule)
        assert found.keys() == names
        assert all(least <= angle <= most for angle in found.values()), found
        assert pseudo_inverse_angles(rule).keys() == names
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in case.blocks.parameters())


def test_feedback_alignment_aligns() -> None:
    """A linear network on a linear task: the angle starts at some 90 degrees and falls."""
    torch.manual_seed(0)
    parts = [nn.Linear(8, 12, bias=False), nn.Linear(12, 3, bias=False)]
    x = torch.randn(64, 8)
    y = (x @ torch.randn(8, 3)).argmax(1)
    for part in parts:
        nn.init.normal_(part.weight, std=0.05)
    rule = rules.FeedbackAlignment(Blocks(parts, example=x))
    (before,) = feedback_angles(rule).values()
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        rule.backward(x, y)
        optimizer.step()
    (after,) = feedback_angles(rule).values()
    assert 60 < before < 120
    assert after < 45


def test_bad_input() -> None:
    direct = rules.DirectFeedbackAlignment(networks.mlp().blocks)
    for call in feedback_angles, pseudo_inverse_angles:
        with pytest.raises(ValueError, match=rf"{call.__name__}\(rule\): DirectFeedback") as e:
            call(direct)
        assert "\n" not in str(e.value)
