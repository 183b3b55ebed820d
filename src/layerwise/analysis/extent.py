"""How much room what a block gives takes up: in how many dimensions, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from layerwise.analysis.frozen import chain, outputs, reading
from layerwise.blocks import Blocks
from layerwise.data import Loader
from layerwise.rules.base import Rule


@dataclass(frozen=True)
class Extent:
    """Of a block's feature vectors: a sample's, a token's, or a position's of feature maps.

    Attributes:
        rank: effective dimensions: 1 where all lie on a line, as many as there are features where
            they spread alike in all directions, 0 where they do not differ.
        norm: Euclidean, mean.
    """

    rank: float
    norm: float


def extent(network: Rule | Blocks, loader: Loader) -> tuple[Extent, ...]:
    """The effective rank and the mean norm of every block's feature vectors.

    Roy & Vetterli 2007 (The effective rank, EUSIPCO), definition 1: with s the singular values of
    all vectors, (N, D), here of centred ones,

        rank = exp(-sum_i p_i log p_i),   p_i = s_i / sum_j s_j

    Representations that collapse have few dimensions; a residual stream without a bound grows. The
    network runs in eval mode and is left as it was.

    Args:
        network: on the device of the loader.
        loader: the samples; of several views of a batch the first.
    """
    found: list[_OfPositions | _OfSamples] = []
    with reading(chain(network)):
        for x, y in loader.epoch(0):
            given = outputs(network, x[: len(y)])
            found = found or [_OfSamples() if h.dim() == 2 else _OfPositions() for h in given]
            for one, h in zip(found, given, strict=True):
                one.add(_vectors(h).cpu().double())
    return tuple(one.extent() for one in found)


class _OfPositions:
    """Sums over vectors of few features, of which there are many: none is kept."""

    def __init__(self) -> None:
        self.count = 0
        self.norm = self.first = self.second = torch.zeros((), dtype=torch.float64)

    def add(self, v_ND: Tensor) -> None:
        self.count += len(v_ND)
        self.norm = self.norm + v_ND.norm(dim=1).sum()
        self.first = self.first + v_ND.sum(0)
        self.second = self.second + v_ND.T @ v_ND

    def extent(self) -> Extent:
        scatter = self.second - self.first.outer(self.first) / self.count
        norm = self.norm / self.count
        return Extent(_rank(scatter, self.second.diagonal().sum()), norm.item())


class _OfSamples:
    """One vector of each sample, which may have more features than there are samples."""

    def __init__(self) -> None:
        self.vectors: list[Tensor] = []

    def add(self, v_ND: Tensor) -> None:
        self.vectors.append(v_ND)

    def extent(self) -> Extent:
        v_ND = torch.cat(self.vectors)
        c_ND = v_ND - v_ND.mean(0)
        products = c_ND.T @ c_ND if c_ND.shape[1] < len(c_ND) else c_ND @ c_ND.T
        return Extent(_rank(products, v_ND.square().sum()), v_ND.norm(dim=1).mean().item())


def _rank(products: Tensor, total: Tensor) -> float:
    """Of centred vectors, from their products; `total`, the sum of all squares uncentred, tells
    what is rounding: of vectors that do not differ it leaves no direction."""
    squares = torch.linalg.eigvalsh(products)
    s = (squares * (squares > 1e-12 * total)).sqrt()
    p = s / s.sum()
    return torch.special.entr(p).sum().exp().item() if s.any() else 0.0


def _vectors(h: Tensor) -> Tensor:
    """(B, D), (B, T, D) or (B, C, ...) -> (N, features)."""
    return (h if h.dim() <= 3 else h.movedim(1, -1)).flatten(0, -2)
