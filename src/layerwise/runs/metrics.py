"""Loss and accuracy of every block over many batches, summed on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from layerwise.labels import IGNORED, Shape, true_classes

SMALL = 1 << 22  # class scores; a stack of more would take a lot of memory


def perplexity(loss: float) -> float:
    """exp(loss): the number of equally likely tokens that would leave the model as uncertain.

    Args:
        loss: mean nats per token.
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def selected_by(row: Mapping[str, float | int | None]) -> float | None:
    """The score by which the best epoch is selected; higher is better.

    It is the validation accuracy, for a text the negative validation perplexity, for labels that
    are no classes the negative validation loss. None without a validation split, and for an epoch
    that does not train the network's output.

    Args:
        row: one epoch's row of metrics.csv.
    """
    if row.get("train_loss", 0.0) is None:
        return None
    if (found := row.get("validation_perplexity")) is not None:
        return -found
    accuracy, loss = row.get("validation_accuracy"), row.get("validation_loss")
    return -loss if accuracy is None and loss is not None else accuracy


class Metrics:
    """Loss and accuracy of every block, summed over batches.

    The sums stay on the device until `losses`, `accuracies` or `labels` is called.

    Args:
        blocks: number of blocks.
        device: of the sums.
        soft_labels: whether labels that are real numbers are probabilities of the classes, and not
            what another criterion than cross-entropy compares scores with.
    """

    def __init__(self, blocks: int, device: torch.device | str = "cpu", soft_labels: bool = True):
        self._soft = soft_labels
        wide = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.loss_sums = torch.zeros(blocks, dtype=wide, device=device)
        self.right = torch.zeros(blocks, dtype=wide, device=device)
        self.has_loss = [False] * blocks
        self.has_logits = [False] * blocks
        self.samples = 0
        self.counted = torch.zeros((), dtype=wide, device=device)  # labels that count

    @property
    def labels(self) -> int:
        """The number of labels that counted. Waits for the device."""
        return round(self.counted.item())

    @labels.setter
    def labels(self, count: int) -> None:
        self.counted.fill_(count)

    @torch.no_grad()
    def add(
        self, losses: Sequence[Tensor | None], logits: Sequence[Tensor | None], y: Tensor
    ) -> Tensor:
        """Add one batch.

        Ignored labels enter neither the loss nor the accuracy. The true class of a soft label is
        its most probable one. A block has no accuracy if the labels are not classes of its scores,
        as in a regression.

        Args:
            losses: each block's loss, (), the mean over the labels that count, or None.
            logits: each block's class scores, (B, C), (B, T, C), (B, C, H, W) ..., or None.
            y: labels in a layout that `labels.class_axis` knows.

        Returns:
            The losses, (blocks,); zero for a block without a loss.
        """
        self.samples += len(y)
        classified = self._soft or not y.is_floating_point()
        true = [
            None if scores is None or not classified else true_classes(scores, y)
            for scores in logits
        ]
        classes = next((found[0] for found in true if found is not None), None)
        counted = (
            self.counted.new_full((), y.numel())
            if classes is None
            else (classes != IGNORED).sum().to(self.counted.dtype)
        )
        self.counted.add_(counted)
        # A block without a loss adds zero: that needs no index on the device.
        zero = self.loss_sums.new_zeros(())
        stacked = torch.stack([zero if loss is None else loss for loss in losses])
        self.loss_sums.addcmul_(stacked.to(self.loss_sums.dtype), counted)
        self.has_loss = [loss is not None for loss in losses]
        self.has_logits = [found is not None for found in true]
        predicting = [
            (scores, found[1])
            for scores, found in zip(logits, true, strict=True)
            if scores is not None and found is not None
        ]
        if classes is not None:
            right = (_predicted(predicting) == classes).flatten(1).sum(1)
            if len(predicting) < len(logits):
                counts, none = iter(right.unbind()), right.new_zeros(())
                right = torch.stack([next(counts) if has else none for has in self.has_logits])
            self.right.add_(right)
        return stacked

    def losses(self) -> list[float | None]:
        """Mean nats per label of each block. Waits for the device."""
        means = (self.loss_sums / self.counted.clamp(min=1)).tolist()
        return [m if has else None for m, has in zip(means, self.has_loss, strict=True)]

    def accuracies(self) -> list[float | None]:
        """Share of correct predictions of each block, 0 to 1. Waits for the device."""
        shares = (self.right / self.counted.clamp(min=1)).tolist()
        return [s if has else None for s, has in zip(shares, self.has_logits, strict=True)]

    def only(self, blocks: Sequence[int]) -> None:
        """Forget the sums of all other blocks; without blocks, all sums."""
        if not blocks:
            self.samples = 0
            self.counted.zero_()
        for i in range(len(self.has_loss)):
            if i not in blocks:
                self.loss_sums[i] = self.right[i] = 0.0
                self.has_loss[i] = self.has_logits[i] = False

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_soft"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the sums of `state_dict`.

        Raises:
            ValueError: something is missing, or of another kind or shape.
        """
        own = self.state_dict()
        for key in own.keys() - {"counted"}:  # earlier versions kept `labels` instead
            if key not in state:
                raise ValueError(f"{key!r} is missing in the sums of the epoch")
        for key, value in state.items():
            is_like = _alike(value, own[key]) if key in own else key == "labels"
            if not is_like or (key == "labels" and type(value) is not int):
                raise ValueError(f"{key!r} in the sums of the epoch is of another kind")
        for key, value in state.items():
            if isinstance(value, Tensor):
                getattr(self, key).copy_(value)
            else:
                setattr(self, key, value)


def _alike(value: Any, own: Any) -> bool:
    """Whether a value may take the place of `own`: same type, shape and length."""
    if isinstance(own, Tensor):
        same = isinstance(value, Tensor) and value.shape == own.shape
        return same and value.is_floating_point()
    if isinstance(own, list):
        same = isinstance(value, list) and len(value) == len(own)
        return same and all(type(v) is bool for v in value)
    return type(value) is type(own)


def _predicted(scores: Sequence[tuple[Tensor, int]]) -> Tensor:
    """The class that each block predicts, (blocks, ...).

    Args:
        scores: each block's class scores and the axis of their classes.
    """
    kinds: set[tuple[Shape, int]] = {(tuple(z.shape), axis) for z, axis in scores}
    if len(kinds) == 1 and sum(z.numel() for z, _ in scores) <= SMALL:
        ((_, axis),) = kinds
        # One kernel for all blocks.
        return torch.stack([z for z, _ in scores]).argmax(axis + 1 if axis > 0 else axis)
    return torch.stack([z.argmax(axis) for z, axis in scores])
