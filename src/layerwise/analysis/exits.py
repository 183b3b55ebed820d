"""What every exit of a trained network gives on data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
)

from layerwise.blocks.chain import dry_run
from layerwise.data import Loader
from layerwise.errors import InputError
from layerwise.inputs import call
from layerwise.labels import IGNORED, true_classes
from layerwise.objectives.classify import cross_entropy
from layerwise.rules.base import Rule
from layerwise.runs.tally import perplexity

CONFUSION_CLASSES = 1000  # beyond, a table of a number for each pair is no longer small


# Sums of the exits' class scores: how much more each weighs than the one before. `sum` is that of
# Gong et al. 2025 (arXiv:2501.09238), `doubling` of Belilovsky et al. 2019 (arXiv:1812.11446).
ENSEMBLES = {"sum": 1.0, "doubling": 2.0}


def ensemble(scores: Sequence[Tensor | None], growth: float = 1.0) -> Tensor:
    """The weighted mean of the class scores that there are: the k-th weighs growth^k.

    Args:
        scores: of every exit, (B, C) or (B, T, C), or None.
        growth: of the weight from exit to exit.
    """
    there = [z for z in scores if z is not None]
    weights = [growth**k for k in range(len(there))]
    total = torch.zeros_like(there[0])
    for weight, z in zip(weights, there, strict=True):
        total = total + weight / sum(weights) * z
    return total


def sample_losses(rule: Rule, loader: Loader, fabric: Fabric) -> Tensor:
    """The network's loss on every sample of `loader`, in its order: (N,) nats, on the CPU; of
    tokens the mean."""
    return sample_outcomes(rule, loader, fabric)[0]


@torch.no_grad()
def sample_outcomes(rule: Rule, loader: Loader, fabric: Fabric) -> tuple[Tensor, Tensor]:
    """The network's loss on every sample of `loader`, in its order, and whether it predicts it
    right: (N,) nats and (N,) bool, on the CPU; of tokens and of pixels the mean over the labels
    that count, and whether all of them are right."""
    rule = rule.to(fabric.device).eval()
    losses, right = [], []
    with fabric.autocast():
        for x, y in loader.epoch(0):
            scores = rule(x).float()
            classes, axis = _classes_of(scores, y)
            each = F.cross_entropy(
                scores.movedim(axis, -1).flatten(0, -2), classes.flatten(), reduction="none"
            ).view(len(y), -1)
            counts = (classes != IGNORED).view(len(y), -1)
            # By 1, exactly, where all count.
            losses.append(each.mean(1) * (counts.shape[1] / counts.sum(1).clamp(min=1)))
            right.append(((scores.argmax(axis) == classes).view(len(y), -1) | ~counts).all(1))
    return torch.cat(losses).cpu(), torch.cat(right).cpu()


@torch.no_grad()
def evaluate(
    rule: Rule, loader: Loader, num_classes: int, fabric: Fabric
) -> tuple[list[dict[str, Any] | None], dict[str, dict[str, Any]], list[list[int]] | None]:
    """Loss, accuracy and calibration of each block's predictions; which classes the last confuses.

    Args:
        rule: moved to the device, and to eval mode.
        loader: the data.
        num_classes: of the labels.
        fabric: device and precision.

    Returns:
        For each block None where it does not predict, else `loss` (mean nats), `accuracy` and
        `top5` (shares; top5 is None with five classes or fewer) and `calibration_error` (expected
        calibration error over 15 bins; Guo et al. 2017, arXiv:1706.04599); of a text also
        `perplexity`, the exponential of the loss. The same of each of
        `ENSEMBLES`, where more than one block predicts. And how often each class (a row) was taken
        for each (a column) by the last block, C x C; None beyond 1000 classes. All are over the
        labels that count, and of soft labels the most probable class is the true one.

    Raises:
        InputError: labels that are no classes of the network's scores.
    """
    rule = rule.to(fabric.device).eval()
    metrics: dict[int | str, MetricCollection] = {}
    losses: dict[int | str, MeanMetric] = {}
    last = len(rule.blocks) - 1
    confusion = (
        MulticlassConfusionMatrix(num_classes, validate_args=False).to(fabric.device)
        if num_classes <= CONFUSION_CLASSES
        else None
    )
    with fabric.autocast():
        for x, y in loader.epoch(0):
            exits = rule.exits(x)
            several: dict[int | str, Tensor] = {i: z for i, z in enumerate(exits) if z is not None}
            if len(several) > 1:
                several |= {name: ensemble(exits, growth) for name, growth in ENSEMBLES.items()}
            for i, logits in several.items():
                if i not in metrics:
                    metrics[i] = _metrics(num_classes).to(fabric.device)
                    losses[i] = MeanMetric().to(fabric.device)
                predicted, true = _counted(logits.float(), y)
                losses[i].update(cross_entropy(logits.float(), y), weight=true.numel())
                metrics[i].update(predicted, true)
                if confusion is not None and i == last:
                    confusion.update(predicted, true)
    means = {i: mean.compute().item() for i, mean in losses.items()}
    results = {
        i: {
            "loss": means[i],
            "top5": None,
            **{key: value.item() for key, value in found.compute().items()},
            **({"perplexity": perplexity(means[i])} if loader.tokens else {}),
        }
        for i, found in metrics.items()
    }
    return (
        [results.get(i) for i in range(len(rule.blocks))],
        {name: results[name] for name in ENSEMBLES if name in results},
        None if confusion is None else confusion.compute().tolist(),
    )


def _counted(scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The probabilities (N, C) and the true classes (N,) of all labels that count."""
    classes, axis = _classes_of(scores, y)
    p_NC, true = scores.softmax(axis).movedim(axis, -1).flatten(0, -2), classes.flatten()
    counts = true != IGNORED
    return (p_NC, true) if bool(counts.all()) else (p_NC[counts], true[counts])


def _classes_of(scores: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """The true classes, and the axis of the classes."""
    found = true_classes(scores, y)
    if found is None:
        raise InputError(
            f"evaluate: got class scores {tuple(scores.shape)} with labels {tuple(y.shape)} of "
            f"{y.dtype}, which are no classes of these; it measures class scores alone"
        )
    return found


def cheapest(exits: Sequence[Mapping[str, Any] | None], within: float = 0.01) -> int:
    """The number of the exit that costs least of those that are good enough: a network of its own,
    the blocks up to there with that block's head.

    Args:
        exits: what `layerwise evaluate` writes under `exits`, for each block None or `accuracy`
            and `flops`; of the validation split, where a choice is made by it.
        within: how much less accurate than the best exit it may be, a share.
    """
    there = {i: exit for i, exit in enumerate(exits) if exit is not None}
    best = max(exit["accuracy"] for exit in there.values())
    enough = [i for i, exit in there.items() if exit["accuracy"] >= best - within]
    return min(enough, key=lambda i: there[i]["flops"])


class Exit(nn.Module):
    """The network that ends at an exit: the blocks up to there, and that block's class scores.

    Its modules are the rule's own; nothing after the exit runs.

    Args:
        rule: whose exit, trained or not; its blocks were made with an example.
        i: number of the exit's block, such as `cheapest` gives.

    Raises:
        InputError: no such block; it does not predict; a rule whose prediction is not that of its
            blocks one after the other.
    """

    def __init__(self, rule: Rule, i: int):
        super().__init__()
        name, last = type(rule).__name__, len(rule.blocks) - 1
        if not 0 <= i <= last:
            raise InputError(f"Exit({name}, {i}): give the number of a block, 0 to {last}")
        if type(rule).exit is not Rule.exit:
            raise InputError(
                f"Exit({name}, {i}): {name} does not predict by its blocks one after the other; "
                "take rule.exits(x)"
            )
        self.blocks, self.i = rule.blocks.up_to(i), i
        self.head = rule.objectives.get(i) if i < last else None
        if i < last and not self._predicts(rule):
            raise InputError(
                f"Exit({name}, {i}): block {rule.blocks.names[i]!r} gives no class scores; take "
                "another, or an objective that predicts: Classify"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Class scores, of what the network is called with."""
        h = self.blocks(*args, **kwargs)
        if self.head is None:
            return h
        inputs = kwargs or (args[0] if len(args) == 1 else args)
        return self.head.predict(h, inputs)  # type: ignore[operator]

    def _predicts(self, rule: Rule) -> bool:
        if self.head is None:
            return False
        weight = next(rule.parameters(), torch.zeros(()))
        with dry_run(self):
            return call(self, rule.blocks.zeros(1, weight)) is not None


def _metrics(num_classes: int) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "calibration_error": MulticlassCalibrationError(num_classes, validate_args=False),
    }
    if num_classes > 5:
        metrics["top5"] = MulticlassAccuracy(
            num_classes, top_k=5, average="micro", validate_args=False
        )
    return MetricCollection(metrics, compute_groups=False)
