"""Predict the labels: the objective of decoupled greedy learning."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.batch import Batch
from layerwise.heads.head import Head, refuse_class
from layerwise.labels import IGNORED, class_axis
from layerwise.objectives.objective import Objective, Site

Criterion = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of class scores, (), in nats: the mean over the labels that count.

    The labels are class numbers of any integer type, one for each sample, token or pixel; or the
    classes' probabilities (soft labels, one-hot ones), of the scores' shape. Which axis of the
    scores holds the classes follows from the shapes, as `labels.class_axis` says: the last of
    (B, C) and of tokens (B, T, C), the second of maps (B, C, H, W). A label of -100 does not count;
    where none counts the loss is 0, and so is its gradient.

    A rule also refuses values that are neither classes nor probabilities, such as multi-hot labels:
    in every step where the labels are on the CPU, else in the first, so that later ones do not wait
    for the device.

    Args:
        logits: class scores, (B, C), (B, T, C), (B, C, H, W), ...
        y: the labels.
        label_smoothing: the share of every label that goes to all classes alike.

    Raises:
        InputError: labels of another shape; real numbers that have not the scores' shape; a single
            output, of which the loss would always be 0. `criterion=` of a rule is for those.
    """
    axis = class_axis(logits, y)
    soft = y.shape == logits.shape
    y = y.to(torch.promote_types(logits.dtype, torch.float32)) if soft else y.long()
    if axis == -1:
        logits, y = logits.flatten(0, -2), y.flatten(0, -2) if soft else y.flatten()
    loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    # The mean over no labels is not a number. On the device: nothing waits for the answer.
    return loss if soft else torch.where((y != IGNORED).any(), loss, 0.0)


def is_cross_entropy(criterion: object) -> bool:
    """Whether a criterion is the default one, with label smoothing or without."""
    if isinstance(criterion, functools.partial):
        return criterion.func is cross_entropy and not criterion.args
    return criterion is cross_entropy


class Classify(Objective):
    """Predict the labels from a block's output through an auxiliary network.

    Args:
        head: the auxiliary network's recipe; without one the block's output is the class scores,
            as the last block's is.
        criterion: of class scores and labels, a scalar.
    """

    def __init__(self, head: Head | None = None, criterion: Criterion = cross_entropy):
        super().__init__()
        refuse_class(head, "Classify(head=...)")
        self.head: nn.Module = nn.Identity()
        self.recipe = head
        self.criterion = criterion

    def build(self, site: Site) -> None:
        if self.recipe is not None:
            self.head = self.recipe(site.shape, site.output_shape)

    @property
    def needs_site(self) -> bool:
        return self.recipe is not None

    @property
    def reads_input(self) -> bool:
        return False

    def predict(self, h: Tensor) -> Tensor:
        """Class scores, (B, C) or (B, T, C)."""
        return self.head(h)

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        logits = self.predict(h)
        batch.predicted(logits)
        return self.criterion(logits, batch.y)
