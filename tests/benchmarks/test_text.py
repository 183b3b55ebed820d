"""The simulated times of `benchmarks/text.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerwise import cut, models, rules


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import text

    return text


def test_two_stages_are_as_fast_as_by_hand(text) -> None:
    example = torch.zeros(2, 4, dtype=torch.long)
    blocks = cut(models.gpt((4,), 5, 3, 4), blocks=4, example=example)
    # The slower stage has the blocks of 1 + 2 + 3 seconds; the other division has 3 + 4.
    assert text.in_two(rules.DGL(blocks), [1.0, 2.0, 3.0, 4.0], 1) == {"stages": 6.0}
    # A stage waits for the first of 8 micro-batches, and at the end for the last: 9/8 of 2 seconds.
    found = text.in_two(rules.Backprop(blocks), [1.0] * 4, 8)
    assert found["1F1B, 8"] == found["GPipe, 8"] == pytest.approx(2.25)
    delayed = text.in_two(rules.DelayedGradient(blocks), [1.0] * 4, 1)
    assert delayed == {"delayed gradients": pytest.approx(2.0)}


def test_rivals_have_the_blocks_of_their_name(text) -> None:
    budget = text.Budget(layers=6, width=4)
    splits = type("", (), {"shape": (4,), "num_classes": 5})
    rule = text.rule_of("AugLocal, 3 blocks", splits, budget, 0)
    assert list(rule.blocks.names) == ["embedding", "layer3", "layer5"]
    # A head is the last layer, normalisation and a projection: 12 D^2 + 13 D, 2 D, 5 (D + 1).
    heads = [sum(p.numel() for p in rule.objectives[k].parameters()) for k in (0, 1)]
    assert heads == [12 * 16 + 13 * 4 + 2 * 4 + 5 * 5] * 2
