"""What rules share that train blocks as denoisers of the label's vector."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from layerwise.batch import Batch
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.models.denoisers import Denoiser
from layerwise.objectives import Objective
from layerwise.rule import checked

D = TypeVar("D", bound=Denoiser)


class Chain(Generic[D]):
    """A network of denoisers and a linear classifier, cut into blocks between its modules.

    Attributes:
        of: each block's denoisers.
        last: the last denoiser.
        readout: the linear classifier behind it.

    Raises:
        InputError: the network is something else.
    """

    def __init__(self, call: str, blocks: Blocks, kind: type[D], remedy: str):
        self.of: list[list[D]] = []
        others: list[nn.Module] = []
        for block in checked(call, blocks):
            mine = [m for m in block.modules() if isinstance(m, kind)]
            within = {id(m) for denoiser in mine for m in denoiser.modules()}
            self.of.append(mine)
            others += [
                m
                for m in block.modules()
                if id(m) not in within and any(True for _ in m.parameters(recurse=False))
            ]
        chain = [denoiser for mine in self.of for denoiser in mine]
        whole = chain and chain[0].first and chain[-1].last
        if not whole or len(others) != 1 or not isinstance(others[0], nn.Linear):
            raise InputError(
                f"{call}(blocks): trains a network of denoisers, each given the image and what the "
                f"one before made of the label, and a linear classifier; take {remedy}, cut "
                "between its modules"
            )
        self.last, self.readout = chain[-1], others[0]


class Error(Objective):
    """What a denoiser minimises: of what it gives less what it should, (B, E), half the square,
    mean over the batch."""

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        return h.square().sum(1).mean() / 2

    @property
    def reads_input(self) -> bool:
        return False


class Vectors(Error):
    """Also has the labels' vectors: unit vectors, or where there are not as many features as
    classes random orthogonal ones.

    Args:
        readout: that takes such vectors.
        learned: whether they are parameters.
    """

    def __init__(self, readout: nn.Linear, learned: bool):
        super().__init__()
        classes, size = readout.out_features, readout.in_features
        vectors = torch.empty(classes, size)
        nn.init.eye_(vectors) if classes == size else nn.init.orthogonal_(vectors)
        vectors = vectors.to(readout.weight.device, readout.weight.dtype)
        if learned:
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)


def noised(u: Tensor, levels: tuple[float, float]) -> Tensor:
    """signal u + noise eps, eps ~ N(0, I) drawn anew."""
    signal, noise = levels
    return signal * u + noise * torch.randn_like(u)
