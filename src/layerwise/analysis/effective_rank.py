"""Effective rank, norm and knee of block outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from layerwise.analysis.frozen import Source, blocks_of, frozen, outputs, reading
from layerwise.blocks import Blocks
from layerwise.inputs import first_views
from layerwise.rules.base import Rule


@dataclass(frozen=True)
class EffectiveRank:
    """The effective rank of a block's feature vectors, their norm, and the knee of their spectrum.

    A feature vector belongs to a sample, to a token, or to a position of feature maps.

    Attributes:
        rank: number of effective dimensions: 1 if all vectors lie on a line, the number of features
            if they spread equally in all directions, 0 if they do not differ.
        norm: mean Euclidean norm.
        knee: the number of singular values before the largest drop, which is where s_i / s_{i+1}
            is largest; values below a hundredth of the largest count as that. 0 if the vectors do
            not differ. A linear prediction of one view from another
            that is independent of it given one of k classes has k - 1 directions (Lee et al. 2020,
            arXiv:2008.01064).
    """

    rank: float
    norm: float
    knee: int


def effective_rank(network: Rule | Blocks, loader: Source) -> tuple[EffectiveRank, ...]:
    """The effective rank, the mean norm and the knee of every block's feature vectors.

    Roy & Vetterli 2007 (The effective rank, EUSIPCO), definition 1: with s the singular values of
    the matrix of all vectors, (N, D), here centred,

        rank = exp(-sum_i p_i log p_i),   p_i = s_i / sum_j s_j

    Representations that collapse have few dimensions; the norm of an unbounded residual stream
    grows. The network runs in eval mode and is left unchanged.

    Args:
        network: on the device of the loader.
        loader: the samples; if a batch has several views, the first is used.

    Returns:
        One result per block.
    """
    loader = reading(loader, network, "effective_rank(loader)")
    found: list[_OfPositions | _OfSamples] = []
    with frozen(blocks_of(network)):
        for x, y in loader.epoch(0):
            given = outputs(network, first_views(x, y))
            found = found or [_OfSamples() if h.dim() == 2 else _OfPositions() for h in given]
            for one, h in zip(found, given, strict=True):
                one.add(_vectors(h).cpu().double())
    return tuple(one.result() for one in found)


class _OfPositions:
    """Accumulates sums over many vectors with few features; no vector is kept."""

    def __init__(self) -> None:
        self.count = 0
        self.norm = self.first = self.second = torch.zeros((), dtype=torch.float64)

    def add(self, v_ND: Tensor) -> None:
        self.count += len(v_ND)
        self.norm = self.norm + v_ND.norm(dim=1).sum()
        self.first = self.first + v_ND.sum(0)
        self.second = self.second + v_ND.T @ v_ND

    def result(self) -> EffectiveRank:
        scatter = self.second - self.first.outer(self.first) / self.count
        norm = (self.norm / self.count).item()
        return _extent(scatter, self.second.diagonal().sum(), norm)


class _OfSamples:
    """Keeps one vector per sample, because it may have more features than there are samples."""

    def __init__(self) -> None:
        self.vectors: list[Tensor] = []

    def add(self, v_ND: Tensor) -> None:
        self.vectors.append(v_ND)

    def result(self) -> EffectiveRank:
        v_ND = torch.cat(self.vectors)
        c_ND = v_ND - v_ND.mean(0)
        products = c_ND.T @ c_ND if c_ND.shape[1] < len(c_ND) else c_ND @ c_ND.T
        return _extent(products, v_ND.square().sum(), v_ND.norm(dim=1).mean().item())


def _extent(products: Tensor, total: Tensor, norm: float) -> EffectiveRank:
    """Effective rank and knee of centred vectors.

    Args:
        products: of the centred vectors, (D, D) or (N, N).
        total: the sum of all squares before centring. Eigenvalues that are tiny compared with it
            are rounding errors and do not count, so vectors that do not differ have rank 0.
    """
    squares = torch.linalg.eigvalsh(products).flip(0)
    smallest = 1e-12 * total
    s = (squares * (squares > smallest)).sqrt()
    if not s.any():
        return EffectiveRank(0.0, norm, 0)
    p = s / s.sum()
    falling = squares.clamp_min(1e-4 * squares[0].item())
    knee = 1 + int((falling[:-1] / falling[1:]).argmax()) if len(falling) > 1 else 1
    return EffectiveRank(torch.special.entr(p).sum().exp().item(), norm, knee)


def _vectors(h: Tensor) -> Tensor:
    """All feature vectors of a block's output: (B, D), (B, T, D) or (B, C, ...) -> (N, D)."""
    return (h if h.dim() <= 3 else h.movedim(1, -1)).flatten(0, -2)
