"""Further augmented views of a batch: who sees which rows, how far they go, who refuses them."""

from __future__ import annotations

import networks
import pytest
import torch
from networks import ALL_RULES, MeanSquare, assert_close, assert_same, grads
from torch import Tensor, nn

from layerwise import Batch, InputError, rules
from layerwise.costs.blocks import Costs
from layerwise.costs.stages import block_seconds
from layerwise.objectives import Activity, Classify, Objective
from layerwise.report.pictures import reconstructions


class Spread(Objective):
    """Mean square distance of every view's output to the first view's."""

    def __init__(self, views: int = 2):
        super().__init__()
        self._needs = views

    @property
    def needs_views(self) -> int:
        return self._needs

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        augmented = activity.augmented
        assert augmented is not None
        assert torch.equal(augmented[0], activity.output)
        return (augmented - augmented[:1]).square().mean()


def turned(x: Tensor) -> Tensor:
    return x.flip(-1)


class SeesOther(Objective):
    """mean(h_view^2) of the flipped first view."""

    views = (turned,)  # type: ignore[assignment]

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        h = activity.views[turned]
        assert len(h) == len(batch.labels) == len(batch.x) == len(activity.output)
        return h.square().mean()


def _drawn(case: networks.Case, views: int) -> Tensor:
    return torch.cat([case.x, *(torch.randn_like(case.x) for _ in range(views - 1))])


@pytest.mark.parametrize("network", ["mlp", "plain_cnn", "transformer"])
@pytest.mark.parametrize("views", [2, 3])
def test_every_view_goes_through_the_same_block(network: str, views: int) -> None:
    """Against one view at a time, on networks in which samples do not touch each other."""
    case = getattr(networks, network)(torch.float64)
    rule = rules.Greedy(case.blocks, Spread() + 0.5 * Classify(networks.SMALL_HEAD))
    x = _drawn(case, views)
    report = rule.backward(x, case.y)
    got = grads(rule)
    rule.zero_grad()

    hs = list(x.split(len(case.y)))
    for i, block in enumerate(rule.blocks):
        hs = [block(h.detach()) for h in hs]
        if i == len(rule.blocks) - 1:
            loss = rule.objectives[i](Activity(hs[0]), Batch(case.x, case.y))
        else:
            spread = sum((h - hs[0]).square().mean() for h in hs) / views
            _, classify = rule.objectives[i].terms
            loss = spread + 0.5 * classify(Activity(hs[0]), Batch(case.x, case.y))
        loss.backward()
        torch.testing.assert_close(report.local_losses[i], loss.detach(), rtol=1e-12, atol=0)
    assert_close(got, grads(rule), atol=1e-13)
    assert report.logits.shape == (len(case.y), networks.CLASSES)
    assert all(logits.shape == report.logits.shape for logits in report.local_logits)
    torch.testing.assert_close(report.logits, hs[0].detach(), rtol=1e-12, atol=1e-13)


def test_rows_go_as_far_as_they_are_compared() -> None:
    case = networks.plain_cnn(blocks=3)
    rows: list[int] = []

    def counted(objectives: list[Objective], views: int) -> list[int]:
        rule = rules.Greedy(networks.plain_cnn(blocks=3).blocks, objectives)
        for block in rule.blocks:
            block.register_forward_pre_hook(lambda _, h: rows.append(len(h[0])))
        rows.clear()
        report = rule.backward(_drawn(case, views), case.y)
        assert len(report.logits) == 6
        return list(rows)

    # A block that no longer needs rows drops them before it runs.
    assert counted([Spread(), MeanSquare(), Classify()], 3) == [18, 6, 6]
    assert counted([MeanSquare(), Spread(), Classify()], 3) == [18, 18, 6]
    assert counted([Spread() + SeesOther(), SeesOther(), Classify()], 2) == [18, 12, 6]
    assert counted([SeesOther(), Spread(), Classify()], 2) == [18, 12, 6]
    assert counted([Spread(1), MeanSquare(), Classify()], 1) == [6, 6, 6]


@pytest.mark.parametrize("network", ["cnn", "transformer"])
def test_what_is_asked_for_by_function_is_of_the_first_view(network: str) -> None:
    """Dropping the augmented views leaves the others in their place."""
    case = getattr(networks, network)(torch.float64, blocks=3)
    case.blocks.eval()
    after = [Spread() + SeesOther(), SeesOther(), Classify()]
    alone = [SeesOther(), SeesOther(), Classify()]
    x = _drawn(case, 3)
    rule = rules.Greedy(case.blocks, after).eval()
    rule.backward(x, case.y)
    got = grads(rule.blocks[1])
    case.blocks.zero_grad()
    rules.Greedy(case.blocks, alone).eval().backward(case.x, case.y)
    assert got
    assert_close(got, grads(case.blocks[1]), atol=1e-14)


def test_one_view_changes_nothing() -> None:
    """An objective that compares one view or more leaves the others' bits as they are."""
    case = networks.cnn()
    one = rules.Greedy(case.blocks, 1.0 * MeanSquare()).eval()
    one.backward(case.x, case.y)
    wanted = grads(case.blocks)
    case.blocks.zero_grad()
    other = rules.Greedy(case.blocks, MeanSquare() + Spread(1)).eval()
    other.backward(case.x, case.y)
    assert_same(grads(case.blocks), wanted)


def test_the_last_block_may_compare() -> None:
    case = networks.mlp()
    rule = rules.Greedy(case.blocks, [Spread(), Spread(), Spread() + Classify()])
    report = rule.backward(_drawn(case, 2), case.y)
    assert report.logits.shape == (6, networks.CLASSES)


@pytest.mark.parametrize("name", ALL_RULES)
def test_a_rule_that_compares_nothing_refuses_views(name: str) -> None:
    case = networks.plain_cnn()
    rule = ALL_RULES[name](case.blocks)
    with pytest.raises(InputError, match=r"got 2 views .* no objective compares views") as e:
        rule.backward(_drawn(case, 2), case.y)
    assert "\n" not in str(e.value)
    assert all(p.grad is None for p in rule.parameters())
    with pytest.raises(InputError, match="got 7 inputs for 6 labels; give one label for each"):
        rule.backward(torch.cat([case.x, case.x[:1]]), case.y)


def test_too_few_views() -> None:
    case = networks.mlp()
    rule = rules.Greedy(case.blocks, Spread(2) + MeanSquare())
    with pytest.raises(InputError, match=r"Spread: got 1 view .* compares 2; give --views 2") as e:
        rule.backward(case.x, case.y)
    assert "\n" not in str(e.value)
    assert rule.needs_views == 2
    assert rules.Greedy(case.blocks, 0.0 * Spread(2) + MeanSquare()).needs_views == 0


def test_costs_and_times_are_of_all_views() -> None:
    case = networks.plain_cnn()
    rule = rules.Greedy(case.blocks, Spread())
    one = Costs.of(rules.Greedy(case.blocks, Spread(1)), views=1)
    two, four = Costs.of(rule), Costs.of(rule, views=4)
    last = 2 * 2 * (4 * 4 * 4) * networks.CLASSES  # Linear, forward and weight: it sees one view
    assert two.step_flops - last == 2 * (one.step_flops - last)
    assert four.step_flops - last == 4 * (one.step_flops - last)
    assert len(block_seconds(rule, _drawn(case, 2), case.y, rounds=1)) == 3


def test_pictures_need_no_further_views() -> None:
    case = networks.plain_cnn()
    rule = rules.Greedy(case.blocks, Spread())
    assert reconstructions(rule, case.x, case.y) == {}


def test_isolation() -> None:
    def first_block(factor: float) -> dict[str, Tensor]:
        torch.manual_seed(1)
        case = networks.cnn()
        rule = rules.Greedy(case.blocks, Spread())
        nn.utils.vector_to_parameters(
            factor * nn.utils.parameters_to_vector(rule.parameters_of(1)), rule.parameters_of(1)
        )
        rule.backward(_drawn(case, 2), case.y)
        return grads(rule.blocks[0])

    assert first_block(1.0)
    assert_same(first_block(1.0), first_block(3.0))
