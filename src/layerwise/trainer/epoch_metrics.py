"""An epoch's row of metrics, and the line that a user reads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from layerwise.runs.metrics import Metrics, perplexity

Row = dict[str, float | int | None]


def measured(by_split: Mapping[str, Metrics], tokens: bool) -> Row:
    """Losses and accuracies of the network's output, then of every block.

    Args:
        by_split: split -> sums of losses and hits of every block; "train" is one of the splits.
        tokens: whether samples are tokens of a text, whose loss has a perplexity.
    """
    found = {name: (t.losses(), t.accuracies()) for name, t in by_split.items()}
    row: Row = {}
    for name, (losses, accuracies) in found.items():
        row[f"{name}_loss"], row[f"{name}_accuracy"] = losses[-1], accuracies[-1]
        # Not for "train", whose loss may include label smoothing.
        if tokens and name != "train":
            row[f"{name}_perplexity"] = None if losses[-1] is None else perplexity(losses[-1])
    for i in range(len(by_split["train"].losses())):
        for name, (losses, accuracies) in found.items():
            row[f"{name}_loss_block{i}"] = losses[i]
            row[f"{name}_accuracy_block{i}"] = accuracies[i]
    return row


def last_trained(metrics: Metrics) -> tuple[float | None, float | None]:
    """Loss and accuracy of the last block that had a loss."""
    found = zip(reversed(metrics.losses()), reversed(metrics.accuracies()), strict=True)
    return next((pair for pair in found if pair[0] is not None), (None, None))


def line_of(row: Mapping[str, float | int | None], epochs: int, unit: str) -> str:
    """The line that a user reads after an epoch.

    Args:
        row: the epoch's row of `metrics.csv`.
        epochs: epochs of the whole training.
        unit: what is counted per second: images or windows.
    """
    parts = [f"epoch {row['epoch']}/{epochs}"]
    losses = itertools.takewhile(
        lambda k: k in row, (f"train_loss_block{i}" for i in itertools.count())
    )
    trained = [i for i, key in enumerate(losses) if row[key] is not None]
    block = ""
    if row.get("train_loss") is None and trained:  # the last block is not trained yet
        block = f"_block{trained[-1]}"
        parts.append(f"block {trained[-1]}")
    for name in ("train", "validation", "test"):
        loss, accuracy = row.get(f"{name}_loss{block}"), row.get(f"{name}_accuracy{block}")
        if loss is not None:
            found = f"{name} loss {loss:.4f}"
            found += "" if accuracy is None else f" accuracy {100 * accuracy:.2f}%"
            unsure = None if block else row.get(f"{name}_perplexity")
            parts.append(found if unsure is None else f"{found} perplexity {unsure:.3f}")
    parts.append(f"{row['images_per_s']} {unit}/s")
    return "  ".join(parts)
