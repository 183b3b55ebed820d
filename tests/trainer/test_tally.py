"""Sums over batches against a computation on the whole set."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from layerwise import tally as module
from layerwise.tally import Tally


@pytest.mark.parametrize("small", [1 << 22, 0], ids=["stacked", "one by one"])
@pytest.mark.parametrize("tokens", [False, True])
def test_means_are_those_of_the_whole_set(tokens, small, monkeypatch):
    monkeypatch.setattr(module, "SMALL", small)
    sizes = (5, 5, 3)  # the last batch is smaller
    shape = (4, 7) if tokens else (7,)
    logits = [torch.randn(sum(sizes), *shape) for _ in range(3)]
    y = torch.randint(0, 7, (sum(sizes), *shape[:-1]))
    tally = Tally(3)
    for scores, labels in zip(zip(*(z.split(sizes) for z in logits), strict=True), y.split(sizes)):  # noqa: B905
        losses = [F.cross_entropy(s.flatten(0, -2), labels.flatten()) for s in scores]
        tally.add([losses[0], None, losses[2]], [None, scores[1], scores[2]], labels)
    wanted = [F.cross_entropy(z.flatten(0, -2), y.flatten()).item() for z in logits]
    right = [(z.argmax(-1) == y).double().mean().item() for z in logits]
    assert tally.losses() == [pytest.approx(wanted[0]), None, pytest.approx(wanted[2])]
    assert tally.accuracies() == [None, pytest.approx(right[1]), pytest.approx(right[2])]
    assert (tally.samples, tally.labels) == (13, y.numel())


def test_of_equal_scores_the_first_counts():
    """A block whose scores are all alike is right by chance only."""
    tally = Tally(1)
    tally.add([torch.ones(())], [torch.zeros(6, 3)], torch.tensor([0, 0, 1, 1, 2, 2]))
    assert tally.accuracies() == [pytest.approx(1 / 3)]


def test_mixed_precisions():
    tally = Tally(2)
    losses = [torch.tensor(0.5, dtype=torch.bfloat16), torch.tensor(0.25)]
    logits = [torch.eye(3, dtype=torch.bfloat16), torch.eye(3)]
    assert torch.equal(tally.add(losses, logits, torch.arange(3)), torch.tensor([0.5, 0.25]))
    assert tally.losses() == [0.5, 0.25]
    assert tally.accuracies() == [1.0, 1.0]


def test_state_comes_back():
    tally, other = Tally(2), Tally(2)
    tally.add([None, torch.ones(())], [None, torch.eye(3)], torch.arange(3))
    other.load_state_dict(tally.state_dict())
    assert other.losses() == tally.losses() == [None, 1.0]
    assert other.accuracies() == tally.accuracies()
    assert (other.samples, other.labels) == (3, 3)


def test_an_empty_tally():
    assert Tally(1).losses() == [None]
