"""Find the views that show the same image."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.heads.projector import Projector
from layerwise.objectives.batch import Batch
from layerwise.objectives.contrast import Contrastive


class NTXent(Contrastive):
    """Find the other augmented view of an image among all views of the batch (SimCLR); no labels
    are read.

    Chen et al. 2020 (arXiv:2002.05709), eq. 1, the normalised temperature-scaled cross-entropy. For
    a view with projection z_i of length 1, and p the other view of its image, the loss is

        -log (exp(z_i z_p / tau) / sum_{a != i} exp(z_i z_a / tau))

    in nats; the mean is over all views. With more than two views it is also the mean over the other
    views of the image, which is eq. 2 of Khosla et al. 2020 (arXiv:2004.11362) with a class for
    each image.

    Deviation: each block has this task of its own (the paper trains one network end to end).

    Args:
        projector: recipe of the auxiliary network.
        temperature: tau, by which similarities are divided.

    Raises:
        InputError: a temperature that is not above 0; in a step, fewer than two augmented views.
    """

    @checks_arguments
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
