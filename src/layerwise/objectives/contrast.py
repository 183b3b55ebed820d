"""Which of many points belong together: what contrastive objectives share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from layerwise.errors import InputError
from layerwise.heads.head import refuse_class
from layerwise.heads.projector import Projector
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.objective import Objective, Site


class Contrastive(Objective):
    """Base: the projected outputs of all augmented views of a batch, in groups.

    Args:
        projector: the auxiliary network's recipe.
        temperature: by which similarities are divided.

    Raises:
        InputError: a temperature that is not above 0.
    """

    def __init__(self, projector: Projector, temperature: float):
        super().__init__()
        refuse_class(projector, f"{type(self).__name__}(projector=...)")
        check_temperature(type(self).__name__, temperature)
        self.projector: nn.Module = nn.Identity()
        self.recipe, self.temperature = projector, temperature

    @abstractmethod
    def group(self, batch: Batch, views: int) -> Tensor:
        """Which samples are to be near each other have the same number, (views B,), view after
        view."""

    def build(self, site: Site) -> None:
        self.projector = self.recipe(site.shape)

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        augmented = activity.augmented
        assert augmented is not None
        z = self.projector(augmented.flatten(0, 1))
        return contrast(z, self.group(batch, len(augmented)), self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def contrast(z: Tensor, group: Tensor, temperature: float) -> Tensor:
    """Points of one group are to be near each other, and far from all others.

    Khosla et al. 2020 (arXiv:2004.11362), eq. 2. With I all points, A(i) those but i, P(i) those of
    i's group but i, tau the temperature:

        mean over i of  -1/|P(i)| sum_{p in P(i)} log (exp(z_i z_p / tau) / sum_{a in A(i)}
        exp(z_i z_a / tau))

    nats; the mean is over the points that have others in their group, 0 where there are none.

    Args:
        z: points of length 1, (N, D).
        group: of each point, (N,).
        temperature: tau.
    """
    similar = _similarity(z, z, temperature)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_p = similar - similar.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    together = (group[:, None] == group) & ~itself
    others = together.sum(1)
    of_point = -log_p.masked_fill(~together, 0).sum(1) / others.clamp_min(1)
    return of_point.sum() / (others > 0).sum().clamp_min(1)


def matched(z: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Each point is to find its partner among all partners: the mean of -log softmax, nats.

    Args:
        z, other: points of length 1, (N, D); row n of one belongs to row n of the other.
        temperature: of the similarities.
    """
    similar = _similarity(z, other, temperature)
    return (similar.logsumexp(1) - similar.diagonal()).mean()


def _similarity(z: Tensor, other: Tensor, temperature: float) -> Tensor:
    # Autocast would round a similarity to 8 bits, which the temperature then magnifies.
    with torch.autocast(z.device.type, enabled=False):
        return z @ other.T / temperature


def check_temperature(asked_by: str, temperature: float) -> None:
    """Refuse a temperature that is not above 0."""
    if not temperature > 0:
        raise InputError(
            f"{asked_by}(temperature={temperature}): give more than 0, such as 0.1; the lower, the "
            "more the nearest points count"
        )
