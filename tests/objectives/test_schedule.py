"""Weights that go over the blocks."""

from __future__ import annotations

import networks
import pytest
import torch
from networks import MeanSquare, assert_same, grads

from layerwise import Batch, Blocks, InputError, heads, rules
from layerwise.experiment.registry import make
from layerwise.objectives import Activity, Classify, Objective, Rotation, Sum
from layerwise.objectives.objective import between


def _weights(pair: tuple[float, float], blocks: int, last: bool = False) -> list[float]:
    """What each block's one term counts."""
    x = torch.zeros(2, 3)
    parts = [torch.nn.Linear(3, 3) for _ in range(blocks)]
    given: list[Objective] = [pair * MeanSquare() for _ in range(blocks - (not last))]
    rule = rules.Greedy(Blocks(parts, example=x), given)
    with torch.no_grad():
        h, batch = Activity(torch.ones(1, 3)), Batch(x, torch.zeros(2, dtype=torch.long))
        return [o(h, batch).item() for o in rule.objectives.children() if isinstance(o, Sum)]


def test_linear_over_the_blocks() -> None:
    """InfoPro's, ResNet-110 with 16 modules: of the first 15, 5 - 4.5 i / 14 and i / 14."""
    assert _weights((5, 0.5), 16) == pytest.approx([5 - 4.5 * i / 14 for i in range(15)])
    assert [between(i, 16, 0, 1) for i in range(15)] == pytest.approx([i / 14 for i in range(15)])
    assert _weights((5, 0.5), 2) == [5]
    assert _weights((5, 0.5), 2, last=True) == [5, 0.5]
    assert _weights((4, 2), 4, last=True) == [4, 3, 2, 2]
    assert _weights((3, 3), 3) == [3, 3]


def test_algebra() -> None:
    a, b = MeanSquare(), MeanSquare()
    total = 2 * ((5, 0.5) * a + 3 * b) + (0, 1) * (0.5 * MeanSquare())
    assert isinstance(total, Sum)
    assert total.weights == ((10, 1), 6, (0, 0.5))
    assert (a * (1, 2)).weights == ((1, 2),)  # type: ignore[attr-defined]


def test_one_pair_for_all_is_the_sum_of_each_blocks_own() -> None:
    """Bit for bit the gradient of sums with each block's numbers written out."""
    pair = rules.Greedy(
        networks.cnn().blocks, (1.0, 0.25) * MeanSquare() + (0, 1) * Classify(heads.Linear())
    )
    own = [w * MeanSquare() + v * Classify(heads.Linear()) for w, v in _numbers()]
    plain = rules.Greedy(networks.cnn().blocks, own)
    plain.load_state_dict(pair.state_dict())
    case = networks.cnn()
    pair.backward(case.x, case.y)
    plain.backward(case.x, case.y)
    assert_same(grads(pair), grads(plain))
    assert not [n for n in grads(pair) if n.startswith("objectives.0.")]  # weight 0: not computed


def _numbers() -> list[tuple[float, float]]:
    return [(1.0, 0.0), (0.625, 0.5), (0.25, 1.0)]


def test_views_of_weight_zero_are_not_run() -> None:
    """Rotation with weight 1 at block 0 and 0 at block 1: block 1 sees the images alone."""
    case = networks.plain_cnn()
    rule = rules.Greedy(case.blocks, (1, 0) * Rotation() + 1.0 * Classify(heads.Linear()))
    rows: list[int] = []
    for block in rule.blocks:
        block.register_forward_pre_hook(lambda _, h: rows.append(len(h[0])))
    rule.backward(case.x, case.y)
    assert rows == [4 * 6, 6, 6]


def test_by_name() -> None:
    made = make(
        "objective",
        {"name": "Classify+Rotation", "Classify": {"weight": [0, 1]}, "Rotation": {"weight": 2}},
    )
    assert made.weights == ((0, 1), 2)


REFUSED = {
    "three": (
        lambda: (1, 2, 3) * MeanSquare(),
        r"weight=\(1, 2, 3\)\): give one finite number, or",
    ),
    "nan": (lambda: (1, float("nan")) * MeanSquare(), "give one finite number, or two"),
    "twice": (lambda: (1, 2) * ((3, 4) * MeanSquare()), "product is not linear; give one pair"),
    "no rule": (
        lambda: ((1, 2) * MeanSquare())(Activity(torch.ones(1, 2)), None),
        "depends on the block, which is not known",
    ),
    "by name": (
        lambda: make("objective", {"name": "Classify+Rotation", "Rotation": {"weight": [1, 2, 3]}}),
        r"objective Rotation: weight \[1, 2, 3\]; give a finite number, or two",
    ),
}


@pytest.mark.parametrize("asked", REFUSED)
def test_refusals_are_one_line(asked: str) -> None:
    call, message = REFUSED[asked]
    with pytest.raises(InputError, match=message) as e:
        call()
    assert "\n" not in str(e.value)
