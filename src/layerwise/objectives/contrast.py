"""Base class and losses of contrastive objectives."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from layerwise.autocast import without_autocast
from layerwise.errors import InputError
from layerwise.heads.head import refuse_class
from layerwise.heads.projector import Projector
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.objective import Objective, Site


class Contrastive(Objective):
    """Base class of objectives that contrast the projected outputs of all augmented views of a
    batch, in groups (`contrast`).

    Args:
        projector: recipe of the auxiliary network.
        temperature: number by which similarities are divided.

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
        """The group of each view of each sample, (views B,), view after view. The loss brings
        members of one group together."""

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
    """The loss, (), that brings points of one group together and separates them from all others.

    Khosla et al. 2020 (arXiv:2004.11362), eq. 2. With A(i) all points except i, P(i) the points of
    i's group except i, and tau the temperature:

        mean_i  -1/|P(i)| sum_{p in P(i)} log (exp(z_i z_p / tau) / s_i)
        s_i   = sum_{a in A(i)} exp(z_i z_a / tau)

    in nats. The mean is over the points that have others in their group; it is 0 if there are none.

    Args:
        z: points of length 1, (N, D).
        group: the group of each point, (N,).
        temperature: tau, by which similarities are divided.
    """
    similar = _similarity(z, z, temperature)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_p = similar - similar.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    together = (group[:, None] == group) & ~itself
    others = together.sum(1)
    of_point = -log_p.masked_fill(~together, 0).sum(1) / others.clamp_min(1)
    return of_point.sum() / (others > 0).sum().clamp_min(1)


def matched(z: Tensor, other: Tensor, temperature: float) -> Tensor:
    """The loss, (), of finding each point's partner among all partners: the mean of -log softmax
    of the similarities, in nats.

    Args:
        z, other: points of length 1, (N, D); row n of one belongs to row n of the other.
        temperature: number by which similarities are divided.
    """
    similar = _similarity(z, other, temperature)
    return (similar.logsumexp(1) - similar.diagonal()).mean()


def _similarity(z: Tensor, other: Tensor, temperature: float) -> Tensor:
    # Autocast would round a similarity to 8 bits, which the temperature then magnifies.
    with without_autocast(z.device):
        return z @ other.T / temperature


def check_temperature(asked_by: str, temperature: float) -> None:
    """Refuse a temperature that is not above 0."""
    if not temperature > 0:
        raise InputError(
            f"{asked_by}(temperature={temperature}): give more than 0, such as 0.1; a lower "
            "temperature gives the nearest points more weight"
        )
