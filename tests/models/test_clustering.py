"""Training by clustering finds the latent classes of the toy hierarchy; random features do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.data.sources.digits import digits
from layerwise.data.sources.hierarchical import hierarchical
from layerwise.models.clustering import ClusterPatches, train_by_clustering


def test_names_by_hand() -> None:
    """Two patches of 1x2 pixels, embedded as themselves; centres (0, 0) and (4, 4)."""
    embed = nn.Conv2d(1, 2, (1, 2), (1, 2), bias=False)
    embed.weight.data = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]])
    layer = ClusterPatches(embed, torch.tensor([[0.0, 0.0], [4.0, 4.0]]))
    named = layer(torch.tensor([[[[1.0, 2.0, 3.0, 3.0]]]]))  # |(1,2)| < |(1,2) - (4,4)|
    assert named.tolist() == [[[[1.0, 0.0]], [[0.0, 1.0]]]]


def _data() -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, and the latent classes of level 0, which nobody is told."""
    whole = hierarchical(seed=1).train
    top = (digits().train.images[..., 0] >= 128).long()
    return whole.images.permute(0, 3, 1, 2) / 255 - 0.5, whole.labels, top


def _purity(named: Tensor, latent: Tensor) -> float:
    """Share of the places whose latent class is the most frequent of their cluster."""
    clusters = F.one_hot(named.argmax(1).flatten(), named.shape[1]).float()
    counts = clusters.T @ F.one_hot(latent.flatten()).float()
    return float(counts.max(1).values.sum() / counts.sum())


@pytest.mark.slow
def test_the_hierarchy_is_found() -> None:
    x, y, top = _data()
    held_out = torch.arange(len(y)) % 5 == 0
    found = {}
    for steps in (300, 0):
        network = train_by_clustering(
            x[~held_out], y[~held_out], (4, 2), width=16, steps=steps, lr=0.005
        )
        with torch.no_grad():
            right = (network(x[held_out]).argmax(1) == y[held_out]).float().mean().item()
            named = network[:2](x[held_out])
        assert named.shape == (int(held_out.sum()), 2, 8, 8)
        assert torch.equal(named.sum(1), torch.ones_like(named[:, 0]))
        found[steps] = (right, _purity(named, top[held_out]))
    assert found[300][0] > 0.85, found
    assert found[300][1] > 0.95, found
    assert found[0][0] < 0.7, found
    assert found[0][1] < 0.85, found


def test_same_seed_same_network() -> None:
    x, y, _ = _data()
    torch.manual_seed(1)
    one = train_by_clustering(x[:100], y[:100], (4, 2), steps=3)
    torch.manual_seed(2)
    two = train_by_clustering(x[:100], y[:100], (4, 2), steps=3)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 1, 6, 6\); 2 layers .* divisible by 4"):
        train_by_clustering(torch.zeros(2, 1, 6, 6), torch.zeros(2).long(), (2, 2))
