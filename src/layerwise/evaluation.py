"""What every exit of a trained network gives on data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.blocks.chain import dry_run
from layerwise.data import Loader
from layerwise.errors import InputError
from layerwise.labels import IGNORED, true_classes
from layerwise.objectives.classify import cross_entropy
from layerwise.rule import Rule
from layerwise.tally import perplexity

CONFUSION_CLASSES = 1000  # beyond, a table of a number for each pair is no longer small
BINS = 15  # of the calibration error


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
    sums: dict[int | str, _Sums] = {}
    with fabric.autocast():
        for x, y in loader.epoch(0):
            exits = rule.exits(x)
            several: dict[int | str, Tensor] = {i: z for i, z in enumerate(exits) if z is not None}
            if len(several) > 1:
                several |= {name: ensemble(exits, growth) for name, growth in ENSEMBLES.items()}
            for i, logits in several.items():
                if i not in sums:
                    table = i == len(rule.blocks) - 1 and num_classes <= CONFUSION_CLASSES
                    sums[i] = _Sums(num_classes, table, fabric.device)
                sums[i].add(logits.float(), y)
    results = {i: found.means(loader.tokens) for i, found in sums.items()}
    last = sums.get(len(rule.blocks) - 1)
    return (
        [results.get(i) for i in range(len(rule.blocks))],
        {name: results[name] for name in ENSEMBLES if name in results},
        None if last is None or last.confusion is None else last.confusion.tolist(),
    )


class _Sums:
    """What is counted of one exit, on the device; nothing waits for it until asked.

    Args:
        num_classes: C.
        table: whether to count which class is taken for which.
        device: where the sums live.
    """

    def __init__(self, num_classes: int, table: bool, device: torch.device):
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.counted, self.loss, self.right, self.top5 = torch.zeros(
            4, 1, device=device, dtype=wide
        )
        # Of each bin of confidence: how sure the exit was, and how often it was right.
        self.bins = torch.zeros(2, BINS + 1, device=device, dtype=wide)
        self.classes, self.confusion = num_classes, None
        if table:
            shape = (num_classes, num_classes)
            self.confusion = torch.zeros(shape, device=device, dtype=torch.int64)

    def add(self, logits: Tensor, y: Tensor) -> None:
        """Count a batch's class scores, in single precision."""
        classes, axis = _classes_of(logits, y)
        p_NC = logits.softmax(axis).movedim(axis, -1).flatten(0, -2)
        true = classes.flatten()
        counts = true != IGNORED
        (most, predicted), wide = p_NC.max(-1), self.loss.dtype
        hit, weight = (predicted == true).to(wide), counts.to(wide)
        self.loss += cross_entropy(logits, y).to(wide) * weight.sum()
        self.counted += weight.sum()
        self.right += hit.sum()
        if self.classes > 5:
            self.top5 += (p_NC.topk(5).indices == true.unsqueeze(1)).sum()
        edges = torch.linspace(0, 1, BINS + 1, device=most.device)
        place = torch.bucketize(most, edges, right=True) - 1
        self.bins.index_add_(1, place, torch.stack([most.to(wide) * weight, hit]))
        if self.confusion is not None:
            pair = true.clamp(min=0) * self.classes + predicted
            self.confusion.view(-1).index_add_(0, pair, counts.long())

    def means(self, tokens: bool) -> dict[str, Any]:
        """As `evaluate` returns them."""
        labels = self.counted.clamp(min=1)
        sure, right = self.bins
        found = {
            "loss": (self.loss / labels).item(),
            "top5": (self.top5 / labels).item() if self.classes > 5 else None,
            "accuracy": (self.right / labels).item(),
            "calibration_error": ((sure - right).abs().sum() / labels).item(),
        }
        return {**found, "perplexity": perplexity(found["loss"])} if tokens else found


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
        if not rule.predicts_as_chain:
            raise InputError(
                f"Exit({name}, {i}): {name} does not predict by its blocks one after the other; "
                "take rule.exits(x)"
            )
        self.blocks = nn.Sequential(*list(rule.blocks)[: i + 1])
        self.head = rule.objectives[str(i)] if i < last and str(i) in rule.objectives else None
        if i < last and not self._predicts(rule):
            raise InputError(
                f"Exit({name}, {i}): block {rule.blocks.names[i]!r} gives no class scores; take "
                "another, or an objective that predicts: Classify"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        h = self.blocks(x)
        return h if self.head is None else self.head.predict(h, x)  # type: ignore[operator]

    def _predicts(self, rule: Rule) -> bool:
        if self.head is None:
            return False
        weight = next(rule.parameters(), torch.zeros(()))
        with dry_run(self):
            return self(rule.blocks.zeros(1, weight)) is not None
