"""Effective rank and norm of what blocks give, where both are known."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from torch import Tensor, nn

from layerwise import Blocks, rules
from layerwise.analysis import EffectiveRank, effective_rank
from layerwise.data import Augment, Images, Loader


def _loader(x: Tensor, batch_size: int = 2) -> Loader:
    """Pixels as they are, (N, 1, H, W) of 0 to 255."""
    images = Images(x.permute(0, 2, 3, 1).to(torch.uint8), torch.zeros(len(x), dtype=torch.long))
    return Loader(images, batch_size, augment=Augment(normalize="none"), train=False)


def test_by_hand() -> None:
    """Four vectors (+-3, 0), (0, +-1) have singular values sqrt(18) and sqrt(2), p = (3/4, 1/4);
    the rank is exp(3/4 log 4/3 + 1/4 log 4), the norm (3 + 3 + 1 + 1) / 4 = 2. Moved by (5, 5) the
    rank stays. On a line there is one dimension, and in one point none. As features of a sample, of
    which there may be more than samples, and of a token."""
    corners = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])

    class Look(nn.Module):
        def __init__(self, wanted: Tensor):
            super().__init__()
            self.register_buffer("wanted", wanted)

        def forward(self, x: Tensor) -> Tensor:
            return self.wanted[(x * 255).round().long()[:, 0, 0, 0]]

    wide = torch.linalg.qr(torch.randn(6, 2)).Q.T  # two orthogonal directions of six

    pixels = torch.arange(4).view(4, 1, 1, 1)
    rank = math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    for vectors, wanted in (
        (corners, (rank, 2.0)),
        (corners + 5, (rank, None)),
        (corners @ wide, (rank, 2.0)),
        (corners[:, None], (rank, 2.0)),
        (corners[:, None] + 5, (rank, None)),
        (torch.ones(4, 1, 2) * 7, (0.0, math.sqrt(98))),
        (corners * torch.tensor([1.0, 0.0]), (1.0, 1.5)),
        (torch.ones(4, 2) * 7, (0.0, math.sqrt(98))),
    ):
        (found,) = effective_rank(Blocks([Look(vectors)]), _loader(pixels, 3))
        assert found.rank == pytest.approx(wanted[0], abs=1e-6)
        if wanted[1] is not None:
            assert found.norm == pytest.approx(wanted[1])


@pytest.mark.parametrize("network", ["mlp", "cnn", "transformer"])
def test_against_singular_values(network: str) -> None:
    """Of samples, of positions and of tokens."""
    case = networks.NETWORKS[network]()
    rule = rules.Backprop(case.blocks)
    before = {n: t.clone() for n, t in rule.state_dict().items()}
    found = effective_rank(rule, _Given(case.x, case.y))
    networks.assert_same(before, dict(rule.state_dict()))
    assert rule.training
    with torch.no_grad():
        outputs = rule.eval().activities(case.x)
    for one, h in zip(found, outputs, strict=True):
        v = (h.movedim(1, -1) if h.dim() == 4 else h).flatten(0, -2).double()
        p = torch.linalg.svdvals(v - v.mean(0))
        p = p / p.sum()
        assert one.rank == pytest.approx(torch.special.entr(p).sum().exp().item(), rel=1e-4)
        assert one.norm == pytest.approx(v.norm(dim=1).mean().item(), rel=1e-5)
    assert isinstance(found[0], EffectiveRank)


class _Given:
    """A loader of one batch."""

    def __init__(self, x: Tensor, y: Tensor):
        self.batch = x, y

    def epoch(self, e: int) -> list[tuple[Tensor, Tensor]]:
        return [self.batch]
