"""Tell which views are of the same image."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.heads.projector import Projector
from layerwise.objectives.batch import Batch
from layerwise.objectives.contrast import Contrastive


class NTXent(Contrastive):
    """The normalised temperature-scaled cross entropy of SimCLR: no labels are read.

    Chen et al. 2020 (arXiv:2002.05709), eq. 1: every view is to find the other view of its image
    among all views of the batch; the mean over views, nats. With more than two views the mean over
    the other views of the image: eq. 2 of Khosla et al. 2020 (arXiv:2004.11362) with a class for
    each image. Deviation: the paper trains one network end to end, here each block has this task of
    its own.

    Args:
        projector: the auxiliary network's recipe.
        temperature: by which similarities are divided.

    Raises:
        InputError: a temperature that is not above 0; in a step, fewer than two augmented views.
    """

    def __init__(
        self,
        projector: Projector = Projector(),
        temperature: float = 0.5,
    ):
        super().__init__(projector, temperature)

    @property
    def needs_views(self) -> int:
        return 2

    def group(self, batch: Batch, views: int) -> Tensor:
        return torch.arange(len(batch.labels), device=batch.labels.device).repeat(views)
