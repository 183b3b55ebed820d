"""The penalty on how far a block moves its input: by hand, naively, and in rules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerwise import Blocks, cut, rules
from layerwise.objectives import Activity, Displacement
from layerwise.objectives.batch import Batch


def _network() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(3, 4), nn.Linear(4, 4), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))]


X, Y = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0, 1])


def test_by_hand() -> None:
    """Two samples of two numbers: (1 + 4 + 0 + 9) / 4; the gradient is 2 (after - before) / 4."""
    after = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    before = torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    loss = Displacement()(Activity(after, input=before), Batch(before, torch.zeros(2).long()))
    loss.backward()
    assert loss.item() == 3.5
    assert torch.equal(after.grad, torch.tensor([[0.5, 1.0], [0.0, 1.5]]))


def test_another_shape_costs_nothing() -> None:
    activity = Activity(torch.randn(2, 4), input=torch.randn(2, 3))
    assert Displacement()(activity, Batch(torch.zeros(2, 3), torch.zeros(2).long())).item() == 0


def test_gradient_in_a_rule() -> None:
    """Only the second block keeps the shape. By an independent implementation, in each block."""
    rule = rules.Greedy(Blocks(_network(), example=X), 0.3 * Displacement())
    rule.backward(X, Y)
    first, second, last = _network()
    h1 = first(X).detach()
    h2 = second(h1)
    (0.3 * (h2 - h1).square().sum() / h1.numel()).backward()
    F.cross_entropy(last(h2.detach()), Y).backward()
    found = [list(block.parameters()) for block in rule.blocks]
    assert all(p.grad is None for p in found[0])
    for ours, naive in ((found[1], second), (found[2], last)):
        for p, q in zip(ours, naive.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_the_input_is_the_one_before_changes_in_place() -> None:
    first, _, last = _network()
    second = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))
    rule = rules.Greedy(Blocks([first, second, last], example=X), Displacement())
    report = rule.backward(X, Y)
    h1 = first(X).detach()
    expected = (second[1](h1.relu()) - h1).square().mean()
    torch.testing.assert_close(report.local_losses[1], expected.detach())


def test_auglocal_with_it() -> None:
    """With weight 0 the rule is as without; else each block's loss has the penalty."""
    losses = {}
    for weight in (0.0, 2.0):
        rule = rules.AugLocal(Blocks(_network(), example=X), displacement=weight)
        torch.manual_seed(3)
        for block in range(2):
            for module in rule.auxiliary(block):
                for p in module.parameters():
                    nn.init.normal_(p)
        losses[weight] = rule.backward(X, Y).local_losses
    first, second, _ = _network()
    h1 = first(X)
    moved = (second(h1) - h1).square().mean()
    assert torch.equal(losses[0.0][0], losses[2.0][0])
    torch.testing.assert_close(losses[2.0][1], losses[0.0][1] + 2 * moved)
    assert torch.equal(losses[0.0][2], losses[2.0][2])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="does not tell an objective its block's input"):
        Displacement()(Activity(torch.zeros(2, 3)), Batch(torch.zeros(2, 3), torch.zeros(2).long()))
    with pytest.raises(ValueError, match=r"AugLocal\(displacement=-1"):
        rules.AugLocal(Blocks(_network(), example=X), displacement=-1.0)


def test_several_inputs_are_refused() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x))

    rule = rules.Greedy(cut(Network(), blocks=2, example={"x": X}), Displacement())
    with pytest.raises(ValueError, match="Greedy: the objective of block 0 reads"):
        rule.backward({"x": X}, Y)
