"""Mistakes that the author of a rule can make are answered in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networks
import pytest
import torch
from networks import grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Batch, Blocks, Done, InputError, LocalRule, Needs, Rule, heads, rules
from layerwise.objectives import Activity, Classify, NTXent
from layerwise.rules.base import differentiate


class Forgets(Rule):
    """Backpropagation that says that some blocks are done."""

    needs = Needs.BACKWARD
    told: tuple[int, ...] = ()

    def step(self, batch: Batch) -> Tensor:
        h, last = self.blocks(batch.inputs), len(self.blocks) - 1
        loss, _ = self.loss(last, Activity(h), batch)
        differentiate(loss, batch.scale)
        for k in self.told:
            batch.done(k)
        return h


@pytest.mark.parametrize("told", [(), (2,), (0, 1), (0, 1, 2, 2)])
def test_every_block_is_done_once(told: tuple[int, ...]) -> None:
    case = networks.mlp()
    rule = Forgets(case.blocks)
    rule.told = told
    with pytest.raises(InputError, match=r"Forgets.step: batch.done was called for .* \[0, 1, 2\]"):
        rule.backward(case.x, case.y)
    rule.told = (2, 0, 1)
    rule.backward(case.x, case.y)


def test_a_step_returns_the_output() -> None:
    case = networks.mlp()
    rule = Forgets(case.blocks)
    rule.step = lambda batch: None  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(InputError, match=r"Forgets.step: returned NoneType; return the"):
        rule.backward(case.x, case.y)


class Returns(LocalRule):
    """A rule whose step gives what it is told."""

    def __init__(self, blocks: Blocks, what: Callable[[Tensor], Any]):
        super().__init__(blocks, Classify(heads.Linear()))
        self.what = what

    def local_step(self, k: int, h: Any, batch: Batch) -> Done:
        h, activity = self.run(k, h, batch)
        loss, _ = self.loss(k, activity, batch)
        differentiate(loss, batch.scale)
        return self.what(h)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda h: (h.detach(), None), "returned tuple; return Done"),
        (lambda h: h.detach(), "returned Tensor; return Done"),
        (lambda h: None, "returned NoneType; return Done"),
        (lambda h: Done(h), "has a graph; give it detached tensors"),
        (lambda h: Done(h.detach(), h.detach()), r"Done\(loss=\) has the shape"),
        (lambda h: Done(h.detach(), carry=h.detach()), r"Done\(carry=\) is Tensor; give a tuple"),
        (lambda h: Done(h.detach(), back=h.detach()), r"Done\(back=\) .* Needs.NEXT"),
    ],
)
def test_a_local_step_returns_done(what: Callable[[Tensor], Any], said: str) -> None:
    case = networks.mlp()
    with pytest.raises(InputError, match=rf"^Returns.local_step, block 0: .*{said}") as e:
        Returns(case.blocks, what).backward(case.x, case.y)
    assert "\n" not in str(e.value)


def test_a_rule_says_what_it_needs() -> None:
    class Silent(Rule):
        step = Forgets.step

    with pytest.raises(InputError, match="Silent: say in the class what a block's gradient waits"):
        Silent(networks.mlp().blocks)


SHARING = ("DeepSupervision", "DirectGlobal", "LocalCritic", "SharedReadout")


@pytest.mark.parametrize("name", SHARING)
def test_blocks_share_a_criterion_with_parameters(name: str) -> None:
    """It is there once, and its gradient is the sum over the blocks' losses."""

    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t = nn.Parameter(torch.tensor(2.0))

        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(z / self.t, y)

    case, criterion = networks.mlp(), Tempered()
    rule = getattr(rules, name)(case.blocks, criterion=criterion)
    rule.backward(case.x, case.y)
    rule.exits(case.x)
    assert sum(p is criterion.t for p in rule.parameters()) == 1
    assert sum(p.dim() == 0 for p in rule.parameters()) == 1


def test_a_criterion_may_work_in_place_on_the_output() -> None:
    case = networks.mlp()
    rule = rules.Backprop(case.blocks, criterion=lambda z, y: F.cross_entropy(z.mul_(2), y))
    other = rules.Backprop(case.blocks, criterion=lambda z, y: F.cross_entropy(2 * z, y))
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    other.backward(case.x, case.y)
    networks.assert_same(got, grads(other))


def test_no_function_for_blocks_that_are_done() -> None:
    case = networks.mlp()
    rules.DGL(case.blocks).backward(case.x, case.y, on_block=None)


def test_terms_that_read_more_than_the_output_add_up_in_this_order() -> None:
    """The gradient of a block's output is the sum of what its views, its augmented views and its
    first rows give, in the order of before: bits of trainings depend on it."""
    torch.manual_seed(0)
    parts = [nn.Linear(8, 16), nn.Sequential(nn.Tanh(), nn.Linear(16, 16)), nn.Linear(16, 10)]
    blocks = Blocks(parts, example=torch.randn(2, 8))
    objective = 0.5 * NTXent() + 0.5 * Classify(heads.Linear())
    rule = rules.Overlap(blocks, objective, 1)
    x = torch.randn(8, 8)
    h, activity = rule.run(0, rule.reading.first_input(Batch(x, torch.arange(4))), _batch(rule, x))
    assert activity.augmented is not None
    # Autograd runs what was recorded last first.
    assert activity.output.grad_fn._sequence_nr() > activity.augmented.grad_fn._sequence_nr()
    assert h.shape == (8, 16)


def _batch(rule: Rule, x: Tensor) -> Batch:
    batch = Batch(x, torch.arange(4))
    batch.passes = rule.blocks.passes(batch.augmented)
    return batch
