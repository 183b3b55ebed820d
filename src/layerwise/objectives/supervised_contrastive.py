"""Bring samples of one class together."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.errors import InputError
from layerwise.heads.projector import Projector
from layerwise.labels import IGNORED, class_numbers
from layerwise.objectives.batch import Batch
from layerwise.objectives.contrast import Contrastive
from layerwise.objectives.objective import Site


class SupervisedContrastive(Contrastive):
    """Samples of one class near each other, and far from those of others.

    Khosla et al. 2020 (arXiv:2004.11362), eq. 2 (L_out), on the projected outputs of all views of
    the batch; as a local objective in Wang et al. 2021 (InfoPro, arXiv:2101.10832). It works with
    one view or more. A sample whose label does not count is of no other's class, as in NT-Xent.
    Deviations: the mean over samples that have another of their class, not the
    sum over all; as their code does, without its factor temperature / base temperature.

    Args:
        projector: the auxiliary network's recipe.
        temperature: by which similarities are divided.

    Raises:
        InputError: a temperature that is not above 0; when it is built, a network with a label for
            every token; in a step, labels that are no class numbers.
    """

    def __init__(
        self,
        projector: Projector = Projector(),
        temperature: float = 0.1,
    ):
        super().__init__(projector, temperature)

    def build(self, site: Site) -> None:
        if len(site.output_shape) != 1:
            raise InputError(
                "SupervisedContrastive: the network gives class scores for every token, "
                f"{site.output_shape}, and this brings whole samples of one class together; give "
                "a network with one label for each sample"
            )
        super().build(site)

    @property
    def needs_views(self) -> int:
        return 1

    def group(self, batch: Batch, views: int) -> Tensor:
        y = class_numbers(batch.labels, "SupervisedContrastive")
        alone = -1 - torch.arange(len(y), device=y.device)  # of no class: with its own views
        return torch.where(y == IGNORED, alone, y).repeat(views)
