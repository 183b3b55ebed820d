"""Bring samples of one class together."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.errors import InputError
from layerwise.heads.projector import Projector
from layerwise.labels import IGNORED, class_numbers
from layerwise.objectives.batch import Batch
from layerwise.objectives.contrast import Contrastive
from layerwise.objectives.objective import Site


class SupervisedContrastive(Contrastive):
    """Bring samples of one class together, and separate them from samples of other classes.

    Khosla et al. 2020 (arXiv:2004.11362), eq. 2 (L_out), in nats, on the projected outputs z of all
    views of the batch, with length 1; used as a local objective by Wang et al. 2021 (InfoPro,
    arXiv:2101.10832). With A(i) all views except i, P(i) those of i's class except i, and tau the
    temperature:

        mean_i  -1/|P(i)| sum_{p in P(i)} log (exp(z_i z_p / tau) / s_i)
        s_i   = sum_{a in A(i)} exp(z_i z_a / tau)

    One view of every sample is enough. A sample whose label does not count forms a class with only
    its own views, as in `NTXent`.

    Deviations: the loss is the mean over the views that have another of their class, not the sum
    over all, as in the authors' code, but without its factor temperature / base temperature.

    Args:
        projector: recipe of the auxiliary network.
        temperature: tau, by which similarities are divided.

    Raises:
        InputError: a temperature that is not above 0; when it is built, a network with a label for
            every token; in a step, labels that are not class numbers.
    """

    @checks_arguments
    def __init__(
        self,
        projector: Projector = Projector(),
        temperature: float = 0.1,
    ):
        super().__init__(projector, temperature)

    def build(self, site: Site) -> None:
        if len(site.output_shape) != 1:
            raise InputError(
                f"SupervisedContrastive: the network gives {site.output_shape} for each sample; "
                "this objective needs one label for each whole sample: (classes,)"
            )
        super().build(site)

    @property
    def needs_views(self) -> int:
        return 1

    def group(self, batch: Batch, views: int) -> Tensor:
        y = class_numbers(batch.labels, "SupervisedContrastive")
        alone = -1 - torch.arange(len(y), device=y.device)  # a class of its own views
        return torch.where(y == IGNORED, alone, y).repeat(views)
