"""Loss, accuracy and calibration of every exit of a trained network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from layerwise.analysis.exits.test_time import TestTime, averaged_exits
from layerwise.analysis.frozen import Source, reading
from layerwise.data import Batches, Loader
from layerwise.errors import InputError
from layerwise.labels import IGNORED, true_classes
from layerwise.objectives.classify import is_cross_entropy
from layerwise.rules.base import Rule, criterion_of
from layerwise.runs.metrics import perplexity

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torchmetrics import Metric, MetricCollection

CONFUSION_CLASSES = 1000  # with more classes, a confusion matrix is too large

# Ensembles of the exits: the factor by which each exit weighs more than the previous one. `sum` is
# that of Gong et al. 2025 (arXiv:2501.09238), `doubling` that of Belilovsky et al. 2019
# (arXiv:1812.11446).
ENSEMBLES = {"sum": 1.0, "doubling": 2.0}


def prepared(
    rule: Rule, loader: Source, fabric: Fabric | None, call: str
) -> tuple[Rule, Loader | Batches, Fabric]:
    """The rule on its device in eval mode, what reads the data, and device and precision: by
    default those of the rule, in 32 bits."""
    from layerwise.trainer.fabric import fabric_for  # slow to import

    if fabric is None:
        fabric = fabric_for(str(next(rule.parameters()).device))
    rule = rule.to(fabric.device).eval()
    return rule, reading(loader, rule, call), fabric


def ensemble(scores: Sequence[Tensor | None], growth: float = 1.0) -> Tensor:
    """The weighted mean of all exits' class scores; the k-th of them has weight growth^k.

    Args:
        scores: of every exit, (B, C) or (B, T, C), or None if it has none.
        growth: factor of the weight from one exit to the next.
    """
    there = [z for z in scores if z is not None]
    weights = [growth**k for k in range(len(there))]
    total = torch.zeros_like(there[0])
    for weight, z in zip(weights, there, strict=True):
        total = total + weight / sum(weights) * z
    return total


def sample_losses(rule: Rule, loader: Source, fabric: Fabric | None = None) -> Tensor:
    """The network's loss on every sample of `loader`, in its order: (N,) nats, on the CPU.

    The loss of a sample of tokens is the mean over its tokens.
    """
    return sample_outcomes(rule, loader, fabric)[0]


@torch.no_grad()
def sample_outcomes(
    rule: Rule, loader: Source, fabric: Fabric | None = None
) -> tuple[Tensor, Tensor]:
    """The network's loss on every sample of `loader`, and whether the prediction is correct.

    If a sample has several labels (tokens, pixels), its loss is the mean over the labels that
    count, and its prediction is correct if all of these are.

    Returns:
        (N,) nats and (N,) bool, in the order of `loader`, on the CPU.
    """
    rule, loader, fabric = prepared(rule, loader, fabric, "sample_outcomes(loader)")
    losses, right = [], []
    refuse_real = not is_cross_entropy(criterion_of(rule))
    with fabric.autocast(), torch.random.fork_rng(devices=[]):
        for x, y in loader.epoch(0):
            scores = rule(x).float()
            if refuse_real and y.is_floating_point():
                raise InputError("--losses true: the labels are real numbers; only classes have it")
            classes, axis = classes_of(scores, y)
            each = F.cross_entropy(
                scores.movedim(axis, -1).flatten(0, -2), classes.flatten(), reduction="none"
            ).view(len(y), -1)
            counts = (classes != IGNORED).view(len(y), -1)
            # The factor is exactly 1 if all labels count.
            losses.append(each.mean(1) * (counts.shape[1] / counts.sum(1).clamp(min=1)))
            right.append(((scores.argmax(axis) == classes).view(len(y), -1) | ~counts).all(1))
    return torch.cat(losses).cpu(), torch.cat(right).cpu()


@torch.no_grad()
def evaluate(
    rule: Rule,
    loader: Source,
    num_classes: int,
    fabric: Fabric | None = None,
    views: TestTime = "none",
) -> tuple[list[dict[str, Any] | None], dict[str, dict[str, Any]], list[list[int]] | None]:
    """Measure each block's predictions, and which classes the last block confuses.

    Args:
        rule: moved to the device, and put into eval mode.
        loader: the data: a loader, or batches as `data.Batches` reads them.
        num_classes: of the labels.
        fabric: device and precision; by default the rule's device, in 32 bits.
        views: of each image, over which class scores are averaged, as in `averaged_exits`.

    Returns:
        Results of the exits, of the ensembles, and the confusion matrix. The results of an exit are
        `loss` (mean nats), `accuracy` and `top5` (shares; top5 is None with five classes or fewer),
        `calibration_error` (expected calibration error over 15 bins; Guo et al. 2017,
        arXiv:1706.04599) and, for a text, `perplexity` (the exponential of the loss); None for a
        block that does not predict. If labels are real numbers that another criterion than
        cross-entropy reads, only the loss is known, by this criterion. Each of `ENSEMBLES` has the
        same results, if more than one block predicts. The confusion matrix counts how often the
        last block predicted class j (column) for class i (row), C x C; None with more than 1000
        classes. All results are over the labels that count; the true class of a soft label is its
        most probable one.

    Raises:
        InputError: the labels are not classes of the network's scores; views of samples that are
            not images.
    """
    from torchmetrics.aggregation import MeanMetric  # slow to import, and only needed here
    from torchmetrics.classification import MulticlassConfusionMatrix

    rule, loader, fabric = prepared(rule, loader, fabric, "evaluate(loader)")
    metrics: dict[int | str, MetricCollection] = {}
    losses: dict[int | str, MeanMetric] = {}
    last, criterion = len(rule.blocks) - 1, criterion_of(rule)
    confusion = None
    with fabric.autocast(), torch.random.fork_rng(devices=[]):
        for x, y in loader.epoch(0):
            exits = averaged_exits(rule, x, views)
            several: dict[int | str, Tensor] = {i: z for i, z in enumerate(exits) if z is not None}
            if len(several) > 1:
                several |= {name: ensemble(exits, growth) for name, growth in ENSEMBLES.items()}
            for i, logits in several.items():
                if i not in losses:
                    losses[i] = MeanMetric().to(fabric.device)
                real = y.is_floating_point() and not is_cross_entropy(criterion)
                predicted, true = (logits, y) if real else _counted(logits.float(), y)
                weight = len(y) if real else true.numel()
                losses[i].update(criterion(logits.float(), y), weight=weight)
                if real:
                    continue
                if i not in metrics:
                    metrics[i] = _metrics(num_classes).to(fabric.device)
                metrics[i].update(predicted, true)
                if i == last and num_classes <= CONFUSION_CLASSES:
                    if confusion is None:
                        of_classes = MulticlassConfusionMatrix(num_classes, validate_args=False)
                        confusion = of_classes.to(fabric.device)
                    confusion.update(predicted, true)
    means = {i: mean.compute().item() for i, mean in losses.items()}
    results = {
        i: {
            "loss": mean,
            "top5": None,
            **(
                {key: value.item() for key, value in metrics[i].compute().items()}
                if i in metrics
                else {"accuracy": None, "calibration_error": None}
            ),
            **({"perplexity": perplexity(mean)} if loader.tokens else {}),
        }
        for i, mean in means.items()
    }
    return (
        [results.get(i) for i in range(len(rule.blocks))],
        {name: results[name] for name in ENSEMBLES if name in results},
        None if confusion is None else confusion.compute().tolist(),
    )


def _counted(scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The probabilities (N, C) and the true classes (N,) of all labels that count."""
    classes, axis = classes_of(scores, y)
    p_NC, true = scores.softmax(axis).movedim(axis, -1).flatten(0, -2), classes.flatten()
    counts = true != IGNORED
    return (p_NC, true) if bool(counts.all()) else (p_NC[counts], true[counts])


def classes_of(scores: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """The true classes, and the axis of the classes in `scores`."""
    found = true_classes(scores, y)
    if found is None:
        raise InputError(
            f"evaluate: got class scores {tuple(scores.shape)} with labels {tuple(y.shape)} of "
            f"{y.dtype}, which are not classes of these scores; only class scores can be measured"
        )
    return found


def cheapest(exits: Sequence[Mapping[str, Any] | None], within: float = 0.01) -> int:
    """The number of the cheapest exit that is almost as accurate as the best one.

    Args:
        exits: the `exits` that `layerwise evaluate` writes: for each block None, or its `accuracy`
            and `flops`. To choose an exit for use, give those of the validation split.
        within: accepted loss of accuracy compared with the best exit, a share.

    Raises:
        InputError: no block predicts; an accuracy or the FLOPs of an exit are not known.
    """
    there = {i: exit for i, exit in enumerate(exits) if exit is not None}
    lacks = [key for key in ("accuracy", "flops") for e in there.values() if e.get(key) is None]
    if lacks or not there:
        raise InputError(
            f"cheapest(exits): {f'an exit has no {lacks[0]!r}' if lacks else 'there is no exit'}; "
            "give the `exits` that `layerwise evaluate` writes, of a network that predicts classes"
        )
    best = max(exit["accuracy"] for exit in there.values())
    enough = [i for i, exit in there.items() if exit["accuracy"] >= best - within]
    return min(enough, key=lambda i: there[i]["flops"])


def _metrics(num_classes: int) -> MetricCollection:
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "calibration_error": MulticlassCalibrationError(num_classes, validate_args=False),
    }
    if num_classes > 5:
        metrics["top5"] = MulticlassAccuracy(
            num_classes, top_k=5, average="micro", validate_args=False
        )
    return MetricCollection(metrics, compute_groups=False)
