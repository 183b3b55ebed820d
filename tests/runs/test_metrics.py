"""Sums over batches against a computation on the whole set."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from layerwise.runs import metrics as module
from layerwise.runs.metrics import Metrics


@pytest.mark.parametrize("small", [1 << 22, 0], ids=["stacked", "one by one"])
@pytest.mark.parametrize("tokens", [False, True])
def test_means_are_those_of_the_whole_set(tokens, small, monkeypatch):
    monkeypatch.setattr(module, "SMALL", small)
    sizes = (5, 5, 3)  # the last batch is smaller
    shape = (4, 7) if tokens else (7,)
    logits = [torch.randn(sum(sizes), *shape) for _ in range(3)]
    y = torch.randint(0, 7, (sum(sizes), *shape[:-1]))
    metrics = Metrics(3)
    for scores, labels in zip(zip(*(z.split(sizes) for z in logits), strict=True), y.split(sizes)):  # noqa: B905
        losses = [F.cross_entropy(s.flatten(0, -2), labels.flatten()) for s in scores]
        metrics.add([losses[0], None, losses[2]], [None, scores[1], scores[2]], labels)
    wanted = [F.cross_entropy(z.flatten(0, -2), y.flatten()).item() for z in logits]
    right = [(z.argmax(-1) == y).double().mean().item() for z in logits]
    assert metrics.losses() == [pytest.approx(wanted[0]), None, pytest.approx(wanted[2])]
    assert metrics.accuracies() == [None, pytest.approx(right[1]), pytest.approx(right[2])]
    assert (metrics.samples, metrics.labels) == (13, y.numel())


def test_of_equal_scores_the_first_counts():
    """A block whose scores are all alike is right by chance only."""
    metrics = Metrics(1)
    metrics.add([torch.ones(())], [torch.zeros(6, 3)], torch.tensor([0, 0, 1, 1, 2, 2]))
    assert metrics.accuracies() == [pytest.approx(1 / 3)]


def test_mixed_precisions():
    metrics = Metrics(2)
    losses = [torch.tensor(0.5, dtype=torch.bfloat16), torch.tensor(0.25)]
    logits = [torch.eye(3, dtype=torch.bfloat16), torch.eye(3)]
    assert torch.equal(metrics.add(losses, logits, torch.arange(3)), torch.tensor([0.5, 0.25]))
    assert metrics.losses() == [0.5, 0.25]
    assert metrics.accuracies() == [1.0, 1.0]


def test_state_comes_back():
    metrics, other = Metrics(2), Metrics(2)
    metrics.add([None, torch.ones(())], [None, torch.eye(3)], torch.arange(3))
    other.load_state_dict(metrics.state_dict())
    assert other.losses() == metrics.losses() == [None, 1.0]
    assert other.accuracies() == metrics.accuracies()
    assert (other.samples, other.labels) == (3, 3)


def test_metrics_of_no_batch():
    assert Metrics(1).losses() == [None]


def summed(y: torch.Tensor, logits: list[torch.Tensor], axis: int) -> tuple[Metrics, list[float]]:
    """A metrics of two batches, and each block's loss over all labels that count."""
    metrics = Metrics(len(logits))
    whole = [F.cross_entropy(z.movedim(axis, 1), y).item() for z in logits]
    for part in (slice(0, 4), slice(4, None)):
        losses = [F.cross_entropy(z[part].movedim(axis, 1), y[part]) for z in logits]
        metrics.add(losses, [z[part] for z in logits], y[part])
    return metrics, whole


@pytest.mark.parametrize("small", [1 << 22, 0], ids=["stacked", "one by one"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((7, 4), 1), ((7, 5, 4), 2), ((7, 4, 5, 4), 1), ((7, 4, 2, 5, 4), 1)]
)
def test_labels_that_do_not_count(shape, axis, small, monkeypatch):
    """Batches have unlike numbers of labels that count."""
    monkeypatch.setattr(module, "SMALL", small)
    logits = [torch.randn(shape) for _ in range(2)]
    y = torch.randint(0, 4, [s for k, s in enumerate(shape) if k != axis])
    y[0] = -100
    y[-1].fill_(-100)
    metrics, losses = summed(y, logits, axis)
    assert metrics.losses() == pytest.approx(losses)
    counts = y != -100
    right = [(z.argmax(axis) == y)[counts].double().mean().item() for z in logits]
    assert metrics.accuracies() == pytest.approx(right)
    assert (metrics.samples, metrics.labels) == (7, int(counts.sum()))


def test_a_batch_of_which_no_label_counts():
    metrics = Metrics(1)
    metrics.add([torch.zeros(())], [torch.randn(3, 4)], torch.full((3,), -100))
    assert (metrics.losses(), metrics.accuracies(), metrics.labels) == ([0.0], [0.0], 0)


def test_soft_labels_count_by_the_most_probable_class():
    y = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])
    metrics = Metrics(1)
    metrics.add([torch.ones(())], [torch.eye(3)[[0, 1]]], y)
    assert metrics.accuracies() == [0.5]
    assert metrics.labels == 2
    maps = y.T.reshape(1, 3, 1, 2)
    metrics.add([torch.ones(())], [maps], maps)
    assert metrics.accuracies() == [0.75]


def test_labels_that_are_no_classes_have_no_accuracy():
    metrics = Metrics(2)
    metrics.add([torch.ones(()), None], [torch.randn(3, 1), None], torch.randn(3))
    assert metrics.losses() == [1.0, None]
    assert metrics.accuracies() == [None, None]


def test_no_value_reaches_the_host():
    """Counting on a device that has no values."""
    metrics = Metrics(2, "meta")
    y = torch.zeros(3, 5, dtype=torch.long, device="meta")
    losses = [torch.ones((), device="meta"), None]
    metrics.add(losses, [torch.zeros(3, 5, 4, device="meta"), None], y)
    assert metrics.samples == 3
