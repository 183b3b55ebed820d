"""Kolen-Pollack learning: golden step, how fast B comes to W, where it is backpropagation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import networks
import pytest
import torch
from networks import NETWORKS, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, rules
from layerwise.rules.families.feedback import key


def difference(rule: rules.KolenPollack) -> dict[str, Tensor]:
    """B - W of every layer that has a B."""
    return {
        f"{i}.{name}": rule.feedback[i].get_parameter(key(name)).detach()
        - rule.blocks[i].get_parameter(name).detach()
        for i, names in enumerate(rule.sending)
        for name in names
    }


def as_weights(rule: rules.KolenPollack) -> rules.KolenPollack:
    """With B = W."""
    for weight, matrix in rule.matrices().items():
        matrix.data.copy_(weight.data)
    return rule


def test_golden() -> None:
    """x = (1, -1), label 1, linear layers W1 = [[2, 1], [1, 0]] and W2 = [[0, ln 2], [3, -3]]:

        h = W1 x = (1, 1),    z = W2 h = (ln 2, 0),    p = (2/3, 1/3),    dz = (2/3, -2/3)
        dW2 = dz h^T = [[2/3, 2/3], [-2/3, -2/3]] = dB2

    With B2 = [[1, -1], [2, 0]]: dh = B2^T dz = (2/3) (1 - 2, -1) = (-2/3, -2/3), dW1 = dh x^T. One
    step of SGD with lr = 1/2 and decay d = 1/3: W <- W (1 - 1/6) - dW/2, B as well, so of
    B - W = [[1, -1 - ln 2], [-1, 3]] there is 5/6 left.
    """
    parts = [nn.Linear(2, 2, bias=False).double() for _ in range(2)]
    x = torch.tensor([[1.0, -1.0]]).double()
    rule = rules.KolenPollack(Blocks(parts, example=x))
    (b2,) = rule.feedback.parameters()
    with torch.no_grad():
        parts[0].weight.copy_(torch.tensor([[2.0, 1.0], [1.0, 0.0]]))
        parts[1].weight.copy_(torch.tensor([[0.0, math.log(2)], [3.0, -3.0]], dtype=torch.float64))
        b2.copy_(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
    rule.backward(x, torch.tensor([1]))
    dw2 = torch.tensor([[2.0, 2.0], [-2.0, -2.0]]).double() / 3
    torch.testing.assert_close(parts[1].weight.grad, dw2)
    assert torch.equal(b2.grad, parts[1].weight.grad)
    dw1 = torch.tensor([[-2.0, 2.0], [-2.0, 2.0]]).double() / 3
    torch.testing.assert_close(parts[0].weight.grad, dw1)
    torch.optim.SGD(rule.parameters(), lr=1 / 2, weight_decay=1 / 3).step()
    left = torch.tensor([[1, -1 - math.log(2)], [-1, 3]], dtype=torch.float64) * 5 / 6
    torch.testing.assert_close((b2 - parts[1].weight).detach(), left)


LR, DECAY, STEPS = 0.05, 0.4, 12
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, LR, weight_decay=DECAY),
    "adamw": lambda p: torch.optim.AdamW(p, LR, weight_decay=DECAY),
}


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_feedback_becomes_the_weights(network: str, optimizer: str, clip: bool) -> None:
    """Exactly at the stated rate, in every layer, attention's projections with them."""
    case = NETWORKS[network](torch.float64)
    rule = rules.KolenPollack(case.blocks)
    first = difference(rule)
    assert all(d.abs().max() > 0.05 for d in first.values())
    opt = OPTIMIZERS[optimizer](rule.parameters())
    for _ in range(STEPS):
        opt.zero_grad()
        rule.backward(case.x, case.y)
        if clip:
            nn.utils.clip_grad_norm_(rule.parameters(), 0.1)
        opt.step()
    rate = (1 - LR * DECAY) ** STEPS
    assert_close(difference(rule), {n: rate * d for n, d in first.items()}, atol=1e-13)


def test_momentum_works_through_the_decay() -> None:
    """v <- m v + d D, D <- D - lr v, with D = B - W."""
    case = networks.transformer(torch.float64)
    rule = rules.KolenPollack(case.blocks)
    wanted = difference(rule)
    velocity = dict.fromkeys(wanted, 0.0)
    opt = torch.optim.SGD(rule.parameters(), LR, momentum=0.9, weight_decay=DECAY)
    for _ in range(STEPS):
        opt.zero_grad()
        rule.backward(case.x, case.y)
        opt.step()
        velocity = {n: 0.9 * velocity[n] + DECAY * d for n, d in wanted.items()}
        wanted = {n: d - LR * velocity[n] for n, d in wanted.items()}
    assert_close(difference(rule), wanted, atol=1e-13)


@pytest.mark.parametrize("network", NETWORKS)
def test_with_the_weights_it_is_backprop(network: str) -> None:
    case = NETWORKS[network](torch.float64)
    rule = as_weights(rules.KolenPollack(case.blocks))
    rule.backward(case.x, case.y)
    got = {n: g for n, g in grads(rule).items() if n.startswith("blocks.")}
    for weight, matrix in rule.matrices().items():
        assert torch.equal(matrix.grad, weight.grad)
        assert matrix.grad.data_ptr() != weight.grad.data_ptr()  # either may be scaled in place
    rule.zero_grad()
    F.cross_entropy(case.model(case.x), case.y).backward()
    assert_close(got, grads(rule), atol=1e-10)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_is_feedback_alignments(network: str) -> None:
    """The network's gradients are those of fixed matrices, bit for bit."""
    case = NETWORKS[network]()
    rule = rules.KolenPollack(case.blocks)
    fixed = rules.FeedbackAlignment(case.blocks)
    theirs = fixed.matrices()
    for weight, matrix in rule.matrices().items():
        theirs[weight].copy_(matrix.detach())
    rule.backward(case.x, case.y)
    got = {n: g for n, g in grads(rule).items() if n.startswith("blocks.")}
    rule.zero_grad()
    fixed.backward(case.x, case.y)
    assert_same(got, grads(fixed))


def test_what_else_a_weight_learns_is_not_the_feedbacks() -> None:
    case = networks.mlp(torch.float64)
    rule = rules.KolenPollack(case.blocks)
    weight, matrix = next(iter(rule.matrices().items()))
    rule.backward(case.x, case.y)
    wanted = matrix.grad.clone()
    rule.zero_grad()
    weight.square().sum().backward()  # a penalty
    rule.backward(case.x, case.y)
    assert torch.equal(matrix.grad, wanted)
    assert torch.allclose(weight.grad, wanted + 2 * weight.detach())


def test_which_layers_have_feedback() -> None:
    """All but those that read the input; a frozen weight's is frozen."""
    case = networks.cnn()
    assert rules.KolenPollack(case.blocks).sending[0] == []
    trained = [id(p) for p in case.blocks.parameters() if p.requires_grad]
    case.blocks[0].requires_grad_(False)
    case.blocks[1].requires_grad_(False)
    rule = rules.KolenPollack(case.blocks)
    assert rule.sending[0] == []
    assert rule.sending[1:] == rule.weights[1:]
    assert not any(p.requires_grad for p in rule.feedback[1].parameters())
    assert all(p.requires_grad for i in (2, 3) for p in rule.parameters_of(i))
    case.blocks.requires_grad_(True)
    assert [id(p) for p in case.blocks.parameters()] == trained
    rule.backward(case.x, case.y)
    assert all(p.grad is not None for p in case.blocks.parameters())
    one = rules.KolenPollack(networks.transformer().blocks)
    assert any("in_proj" in name or "attention" in name for n in one.sending for name in n)


def test_feedback_is_saved_and_copied() -> None:
    case = networks.mlp()
    rule = rules.KolenPollack(case.blocks)
    other = copy.deepcopy(rule)
    assert {n for n in rule.state_dict() if n.startswith("feedback")}
    for weight, matrix in other.matrices().items():
        assert matrix.shape == weight.shape
        assert all(matrix is not own for own in rule.matrices().values())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"KolenPollack\(scale=0\): give a positive number"):
        rules.KolenPollack(networks.mlp().blocks, scale=0)
    with pytest.raises(ValueError, match="give an example"):
        rules.KolenPollack(Blocks([nn.Linear(6, 3)]))
