"""ClassifyGroups: the equation, how groups are found and given, what it refuses."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import assert_same, grads
from torch import Tensor, nn

from layerwise import Blocks, InputError, cut, heads, models, rules
from layerwise.objectives import Classify, ClassifyGroups, Site
from layerwise.objectives.classify_groups import groups_from_confusion

PAIRS = [[0, 0, 1, 1], [0, 1, 2, 3]]


def test_one_step_by_hand() -> None:
    """Four classes, {0, 1} against {2, 3}. The head's scores are h = (1, 0) and (1, 0); labels 1
    and 2 are of groups 0 and 1. With p = sigmoid(1):

        loss    (-log p - log(1 - p)) / 2
        d/dscores    ((p - 1, 1 - p) / 2, (p, -p) / 2)
        d/dbias      their sum: (p - 1/2, 1/2 - p)
    """
    x, y = torch.eye(2, dtype=torch.float64)[[0, 0]], torch.tensor([1, 2])
    parts = [nn.Linear(2, 2), nn.Linear(2, 4)]
    blocks = Blocks([part.double() for part in parts], example=x)
    rule = rules.Greedy(blocks, ClassifyGroups(heads.Linear(), groups=PAIRS))
    linear = rule.objectives[0].head[-1]
    for layer in (rule.blocks[0], linear):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    report = rule.backward(x, y)
    p = 1 / (1 + math.exp(-1))
    loss = (-math.log(p) - math.log(1 - p)) / 2
    assert report.local_losses[0].item() == pytest.approx(loss, rel=1e-14)
    assert linear.bias.grad.tolist() == pytest.approx([p - 0.5, 0.5 - p], rel=1e-13)
    assert rule.blocks[0].bias.grad.tolist() == pytest.approx([p - 0.5, 0.5 - p], rel=1e-13)
    assert report.local_logits[0] is None


# Shares taken for one another, each row divided by its own sum:
#   0-1 (0.5 + 0.5) / 2,  1-2 (0.3 + 0.3) / 2,  2-3 (0.2 + 0.2) / 2,  all others 0.
# First 0 and 1 join. Then {0, 1} and 2 have the average (0.3 + 0) / 2 = 0.15, less than 2 and 3, so
# these join: single linkage (0.3) would take 2 to {0, 1}, and so would counts not divided by their
# row's sum, (0 + (60 + 3) / 2) / 2 against (2 + 20) / 2.
CONFUSION = torch.tensor([[50, 50, 0, 0], [100, 40, 60, 0], [0, 3, 5, 2], [0, 0, 20, 80]])


def test_groups_by_hand() -> None:
    assert groups_from_confusion(CONFUSION, [1, 2, 3, 4]) == [
        [0, 0, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 2],
        [0, 1, 2, 3],
    ]
    order = [3, 0, 2, 1]  # the same classes under other numbers
    assert groups_from_confusion(CONFUSION[order][:, order], [2]) == [[0, 1, 0, 1]]


def test_both_directions_count() -> None:
    """0 is often taken for 1, 1 never for 0: (0.4 + 0) / 2, less than (0.3 + 0.3) / 2."""
    confusion = torch.tensor([[6, 4, 0], [0, 7, 3], [0, 3, 7]])
    assert groups_from_confusion(confusion, [2]) == [[0, 1, 1]]


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(2, 12), seed=st.integers(0, 99), largest=st.sampled_from([1, 2, 50]))
def test_levels_are_nested(classes: int, seed: int, largest: int) -> None:
    """Also with ties, with classes that were never seen or never confused."""
    generator = torch.Generator().manual_seed(seed)
    confusion = torch.randint(0, largest, (classes, classes), generator=generator)
    counts = list(range(1, classes + 1))
    levels = groups_from_confusion(confusion, counts)
    assert [len(set(level)) for level in levels] == counts
    assert levels[-1] == list(range(classes))
    for coarse, fine in itertools.pairwise(levels):
        assert len(set(zip(coarse, fine, strict=True))) == len(set(fine))


def _file(path: Path, confusion: object) -> str:
    path.write_text(json.dumps({"confusion": confusion}))
    return str(path)


def _rule(objective: ClassifyGroups, classes: int = 10, blocks: int = 6) -> rules.Greedy:
    parts = [nn.Linear(6, 6) for _ in range(blocks - 1)] + [nn.Linear(6, classes)]
    return rules.Greedy(Blocks(parts, example=torch.zeros(1, 6)), objective)


@pytest.mark.parametrize(
    ("classes", "counts"),
    [(10, [2, 4, 8, 10, 10]), (8, [2, 4, 8, 8, 8]), (2, [2] * 5), (3, [2, 3, 3, 3, 3])],
)
def test_groups_double_with_depth(tmp_path: Path, classes: int, counts: list[int]) -> None:
    confusion = torch.randint(0, 9, (classes, classes))
    path = _file(tmp_path / "evaluation.json", confusion.tolist())
    rule = _rule(ClassifyGroups(heads.Linear(), confusion=path), classes)
    made = [rule.objectives[i] for i in range(5)]
    assert [objective.head[-1].out_features for objective in made] == counts
    assert [len(set(objective.groups.tolist())) for objective in made] == counts
    doubling = [count for count in (2, 4, 8) if count < classes]
    levels = groups_from_confusion(confusion, doubling)
    assert [objective.groups.tolist() for objective in made[: len(levels)]] == levels
    assert made[-1].groups.tolist() == list(range(classes))


def test_given_groups_are_numbered_by_their_first_class() -> None:
    rule = _rule(ClassifyGroups(heads.Linear(), groups=[[1, 0, 1, 0], [2, 1, 0, 3]]), 4)
    got = [rule.objectives[i].groups.tolist() for i in range(3)]
    assert got == [[0, 1, 0, 1], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_after_the_last_level_it_is_classify() -> None:
    case = networks.mlp(blocks=3)
    made: list[dict[str, Tensor]] = []
    for second in (ClassifyGroups(groups=[[0, 1, 1]]), Classify(heads.MLP())):
        torch.manual_seed(2)
        rule = rules.Greedy(case.blocks, [ClassifyGroups(groups=[[0, 1, 1]]), second])
        rule.zero_grad()
        report = rule.backward(case.x, case.y)
        made.append(grads(rule))
        exits = rule.exits(case.x)
        assert exits[0] is None
        assert torch.equal(exits[1], report.local_logits[1])
        assert report.local_logits[0] is None
    assert_same(*made)


def test_criterion_and_labels_per_token() -> None:
    """Labels (B, T) are mapped one by one, and the criterion gets groups."""
    seen: list[tuple[Tensor, Tensor]] = []

    def criterion(logits: Tensor, y: Tensor) -> Tensor:
        seen.append((logits, y))
        return logits.sum()

    x, y = torch.randn(2, 5, 6), torch.randint(4, (2, 5))
    blocks = Blocks([nn.Linear(6, 6), nn.Linear(6, 4)], example=x)
    rules.Greedy(blocks, ClassifyGroups(groups=PAIRS, criterion=criterion)).backward(x, y)
    ((logits, groups),) = seen
    assert logits.shape == (2, 5, 2)
    assert torch.equal(groups, y // 2)


def test_state_dict_keeps_the_groups() -> None:
    one = _rule(ClassifyGroups(groups=[[0, 0, 1, 1]]), 4)
    other = _rule(ClassifyGroups(groups=[[0, 1, 0, 1]]), 4)
    other.load_state_dict(one.state_dict())
    assert other.objectives[0].groups.tolist() == [0, 0, 1, 1]
    x, y = torch.randn(4, 6), torch.arange(4)
    one.backward(x, y)
    other.backward(x, y)
    assert_same(grads(one), grads(other))
    assert not list(rules.Greedy(Blocks([nn.Linear(6, 4)]), []).objectives[0].buffers())


def test_isolation() -> None:
    def first_block(factor: float) -> dict[str, Tensor]:
        torch.manual_seed(1)
        case = networks.cnn()
        rule = rules.Greedy(case.blocks, ClassifyGroups(groups=[[0, 1, 1]]))
        for p in rule.parameters_of(1):
            p.data.mul_(factor)
        # Classes 1 and 2 are one group at block 0, and two after it.
        y = case.y if factor == 1 else torch.where(case.y == 0, 0, 3 - case.y)
        rule.backward(case.x, y)
        return {n: g for n, g in grads(rule).items() if n.startswith(("blocks.0", "objectives.0"))}

    assert first_block(1.0)
    assert_same(first_block(1.0), first_block(3.0))


@pytest.mark.parametrize("way", ["plain", "bf16", "channels_last"])
def test_the_loss_falls(way: str) -> None:
    x, y = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    model = models.vgg8c((3, 16, 16), width=0.125, hidden=32)
    blocks = cut(model, at=["conv3", "conv5", "fc"], example=x)
    groups = [[0] * 5 + [1] * 5, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]]
    rule = rules.Greedy(blocks, 0.5 * Classify(heads.MLP()) + 0.5 * ClassifyGroups(groups=groups))
    losses = networks.losses_of_training(rule, x, y, way)
    assert (losses[-1] < losses[0]).all()


def _text(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def _built(objective: ClassifyGroups, output_shape: tuple[int, ...] = (4,)) -> ClassifyGroups:
    objective.place(Site(0, 2, (6,), (6,), (6,), output_shape))
    return objective


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "neither": (lambda _: ClassifyGroups(), r"got neither groups nor confusion; give levels"),
    "both": (
        lambda path: ClassifyGroups(groups=PAIRS, confusion=_file(path, [[1, 0], [0, 1]])),
        r"got both groups and confusion; give one of them",
    ),
    "the class": (
        lambda _: ClassifyGroups(heads.MLP, groups=PAIRS),  # type: ignore[arg-type]
        r"ClassifyGroups\(head=\.\.\.\): got the class MLP; give a recipe: MLP\(\)",
    ),
    "no file": (
        lambda path: ClassifyGroups(confusion=str(path)),
        r"ClassifyGroups\(confusion='.*'\): cannot be read: No such file",
    ),
    "no JSON": (
        lambda path: ClassifyGroups(confusion=_text(path, "{")),
        r"ClassifyGroups\(confusion='.*'\): not JSON",
    ),
    "no such key": (
        lambda path: ClassifyGroups(confusion=_text(path, '{"accuracy": 1}')),
        r'holds no table of numbers under "confusion"; give what `layerwise evaluate RUN',
    ),
    "no mapping": (
        lambda path: ClassifyGroups(confusion=_text(path, "[1, 2]")),
        r'holds no table of numbers under "confusion"',
    ),
    "rows of different lengths": (
        lambda path: ClassifyGroups(confusion=_file(path, [[1, 0], [1]])),
        r'holds no table of numbers under "confusion"',
    ),
    "words": (
        lambda path: ClassifyGroups(confusion=_file(path, [["a", "b"], ["c", "d"]])),
        r'holds no table of numbers under "confusion"',
    ),
    "not square": (
        lambda path: ClassifyGroups(confusion=_file(path, [[1, 0, 0], [0, 1, 0]])),
        r"ClassifyGroups\(confusion='.*'\): got shape \(2, 3\); give counts \(C, C\)",
    ),
    "negative counts": (
        lambda path: ClassifyGroups(confusion=_file(path, [[1, -1], [0, 1]])),
        r"ClassifyGroups\(confusion='.*'\): got counts that are negative or not finite",
    ),
    "other classes": (
        lambda _: _built(ClassifyGroups(groups=PAIRS), (10,)),
        r"got groups of 4 classes, but the network gives \(10,\)",
    ),
    "other classes in a file": (
        lambda path: _built(ClassifyGroups(confusion=_file(path, [[1, 0], [0, 1]]))),
        r"got groups of 2 classes, but the network gives \(4,\)",
    ),
    "no levels": (
        lambda _: ClassifyGroups(groups=[]),
        r"ClassifyGroups\(groups\): got \[\]; give a list of levels, each with the group of",
    ),
    "one level, not a list of them": (
        lambda _: ClassifyGroups(groups=[0, 0, 1, 1]),  # type: ignore[list-item]
        r"ClassifyGroups\(groups\): got \[0, 0, 1, 1\]; give a list of levels",
    ),
    "levels of different lengths": (
        lambda _: ClassifyGroups(groups=[[0, 0, 1], [0, 1, 2, 3]]),
        r"level 1 groups 4 classes and level 0 3; give every level one number for each class",
    ),
    "a gap": (
        lambda _: ClassifyGroups(groups=[[0, 0, 2, 2]]),
        r"level 0 has groups \[0, 2\]; number them from 0 without gaps",
    ),
    "as many groups as classes": (
        lambda _: ClassifyGroups(groups=[[0, 1, 2, 3]]),
        r"level 0 has 4 groups for 4 classes; begin with two or more groups",
    ),
    "one group": (
        lambda _: ClassifyGroups(groups=[[0, 0, 0, 0]]),
        r"level 0 has 1 groups for 4 classes; begin with",
    ),
    "not nested": (
        lambda _: ClassifyGroups(groups=[[0, 0, 1, 1], [0, 1, 1, 2]]),
        r"a group of level 1 has classes from two groups of level 0; each level must",
    ),
    "two rules": (
        lambda _: _built(_built(ClassifyGroups(groups=PAIRS))),
        r"ClassifyGroups: this objective already has its auxiliary network",
    ),
    "a table of one class": (
        lambda _: groups_from_confusion(torch.ones(1, 1), [1]),
        r"groups_from_confusion\(confusion\): got shape \(1, 1\)",
    ),
    "too many groups": (
        lambda _: groups_from_confusion(CONFUSION, [2, 5]),
        r"groups_from_confusion\(counts=\[2, 5\]\): 4 classes cannot form 5 groups; give",
    ),
}


@pytest.mark.parametrize("asked", REFUSED)
def test_refusals_are_one_line(asked: str, tmp_path: Path) -> None:
    call, message = REFUSED[asked]
    with pytest.raises(InputError, match=message) as e:
        call(tmp_path / "e.json")
    assert "\n" not in str(e.value)
    assert len(str(e.value)) - len(str(tmp_path)) < 250
