"""Bring samples of one class together."""

from __future__ import annotations

from torch import Tensor, nn

from layerwise.batch import Batch
from layerwise.heads.head import refuse_class
from layerwise.heads.projector import Projector
from layerwise.objectives.contrast import check_temperature, contrast
from layerwise.objectives.objective import Objective, Site


class SupervisedContrastive(Objective):
    """Samples of one class near each other, and far from those of others.

    Khosla et al. 2020 (arXiv:2004.11362), eq. 2 (L_out), on the projected outputs of all views of
    the batch; as a local objective in Wang et al. 2021 (InfoPro, arXiv:2101.10832). It works with
    one view or more. Deviations: the mean over samples that have another of their class, not the
    sum over all; as their code does, without its factor temperature / base temperature.

    Args:
        projector: the auxiliary network's recipe.
        temperature: by which similarities are divided.

    Raises:
        InputError: a temperature that is not above 0.
    """

    def __init__(
        self,
        projector: Projector = Projector(),  # noqa: B008 (frozen)
        temperature: float = 0.1,
    ):
        super().__init__()
        refuse_class(projector, "SupervisedContrastive(projector=...)")
        check_temperature("SupervisedContrastive", temperature)
        self.projector: nn.Module = nn.Identity()
        self.recipe, self.temperature = projector, temperature

    def build(self, site: Site) -> None:
        self.projector = self.recipe(site.shape)

    @property
    def needs_views(self) -> int:
        return 1

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        assert batch.augmented is not None
        z = self.projector(batch.augmented.flatten(0, 1))
        return contrast(z, batch.y.repeat(len(batch.augmented)), self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
