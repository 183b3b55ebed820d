"""Predict the labels: the objective of decoupled greedy learning."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.batch import Batch
from layerwise.heads.head import Head, refuse_class
from layerwise.objectives.objective import Objective, Site

Criterion = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean nats per label; logits (B, C) with y (B,), or (B, T, C) with y (B, T)."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten(), label_smoothing=label_smoothing)


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
