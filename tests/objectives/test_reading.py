"""What an objective may read beside the block's output: before the pooling, and further views."""

from __future__ import annotations

import weakref

import networks
import pytest
import torch
from networks import MeanSquare, assert_same, grads
from torch import Tensor, nn

from layerwise import Blocks, heads, rules
from layerwise.objectives import Activity, Classify, Objective, Site
from layerwise.objectives.activity import View
from layerwise.objectives.batch import Batch


class Unpooled(Objective):
    """mean(h^2) of what comes before the pooling."""

    sites: list[Site]

    def build(self, site: Site) -> None:
        self.sites = [site]

    @property
    def reads_unpooled(self) -> bool:
        return True

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        return activity.unpooled.square().mean()


def upside_down(x: Tensor) -> Tensor:
    return x.flip(2)


def negative(x: Tensor) -> Tensor:
    return -x


class Views(Objective):
    """Sum over the views of mean(h_view^2)."""

    def __init__(self, *views: View):
        super().__init__()
        self._views = views

    @property
    def views(self) -> tuple[View, ...]:
        return self._views

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        return torch.stack([activity.views[view].square().mean() for view in self._views]).sum()


def _pooled() -> networks.Case:
    parts = [
        nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2))),
        nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Dropout2d(0.0)),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
    ]
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    parts = [part.double() for part in parts]
    return networks.Case(Blocks(parts, example=x), x, torch.randint(3, (4,)), True)


def test_before_the_pooling() -> None:
    """The gradient is that of the layers before the pooling, and the next block's input is not
    changed by it."""
    case = _pooled()
    rule = rules.Greedy(case.blocks, Unpooled())
    assert rule.objectives[0].sites[0].unpooled_shape == (3, 8, 8)
    assert rule.objectives[1].sites[0].unpooled_shape == (3, 4, 4)
    report = rule.backward(case.x, case.y)
    got = grads(rule)
    assert torch.equal(report.logits, case.model(case.x))

    rule.zero_grad()
    first, second, _ = rule.blocks
    first[0][:2](case.x).square().mean().backward()
    second[:2](first(case.x).detach()).square().mean().backward()
    assert_same({k: v for k, v in got.items() if k.startswith(("blocks.0", "blocks.1"))},
                grads(rule))  # fmt: skip


def test_without_a_pooling_it_is_the_output() -> None:
    case = networks.mlp(torch.float64)
    rule, plain = rules.Greedy(case.blocks, Unpooled()), rules.Greedy(case.blocks, MeanSquare())
    assert rule.objectives[0].sites[0].unpooled_shape == case.blocks.shapes[0]
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    plain.backward(case.x, case.y)
    assert_same(got, grads(plain))


def test_no_graph_is_kept() -> None:
    """Nothing of a block is alive once its step is done."""
    case = _pooled()
    rule = rules.Greedy(case.blocks, Unpooled() + Views(negative))
    batch = Batch(case.x, case.y)
    batch.passes = rule.blocks.passes(case.x)
    alive: list[weakref.ref[Activity]] = []
    loss = rule.loss

    def watched(k: int, activity: Activity, *others: object) -> object:
        alive.append(weakref.ref(activity.unpooled))
        return loss(k, activity, *others)

    rule.loss = watched  # type: ignore[method-assign]
    h = rule.first_input(batch)
    for k in range(3):
        done = rule.local_step(k, h, batch)
        h = done.out
        assert not any(t is not None and t.requires_grad for t in (h, done.loss, done.scores))
    assert [ref() for ref in alive[:2]] == [None, None]


def test_views_pass_as_far_as_they_are_wanted() -> None:
    """Block 0 wants both views, block 1 one of them, the last none; the network's own rows are
    untouched (no BatchNorm here), so the last block's gradient is that without views."""
    case = networks.plain_cnn(torch.float64)
    rule = rules.Greedy(case.blocks, [Views(negative, upside_down), 2.0 * Views(upside_down)])
    report = rule.backward(case.x, case.y)
    got = grads(rule)
    torch.testing.assert_close(report.logits, case.model(case.x), atol=1e-14, rtol=0)
    assert report.logits.shape == (6, 3)

    rule.zero_grad()
    first, second, last = rule.blocks
    hs = [first(view(case.x)) for view in (negative, upside_down)]
    sum(h.square().mean() for h in hs).backward()
    (2.0 * second(hs[1].detach()).square().mean()).backward()
    with torch.no_grad():
        h = second(first(case.x))
    nn.functional.cross_entropy(last(h), case.y).backward()
    networks.assert_close(got, grads(rule), atol=1e-14)


def test_views_and_labels_together() -> None:
    """Labels are read from the rows of the batch itself."""
    case = networks.plain_cnn(torch.float64)
    objective = Classify(heads.Linear()) + 0.5 * Views(negative)
    report = rules.Greedy(case.blocks, objective).backward(case.x, case.y)
    assert report.local_logits[0].shape == (6, 3)
    assert report.local_losses[0].isfinite()


def test_a_block_without_an_objective_is_not_trained() -> None:
    case = networks.cnn()
    rule = rules.Greedy(case.blocks, [None, Classify(heads.Linear()), None])
    report = rule.backward(case.x, case.y)
    trained = {tuple(name.split(".")[:2]) for name in grads(rule)}
    assert trained == {("blocks", "1"), ("blocks", "3"), ("objectives", "1")}
    assert [loss is None for loss in report.local_losses] == [True, False, True, False]
    assert [scores is None for scores in rule.exits(case.x)] == [True, False, True, False]


def test_the_last_block_needs_an_objective() -> None:
    case = networks.mlp()
    with pytest.raises(ValueError, match="got None for the last block"):
        rules.Greedy(case.blocks, [MeanSquare(), MeanSquare(), None])
