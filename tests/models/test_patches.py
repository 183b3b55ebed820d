"""Nearest patches: the code of every patch by a loop, whitening, and layers made one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layerwise import models
from layerwise.errors import InputError
from layerwise.models.patches import NearestPatches, whitening


def test_whitened_patches_have_the_identity_as_covariance() -> None:
    mixed = torch.randn(500, 6).double() @ torch.randn(6, 6).double() + 3
    mean, white = whitening(mixed, 0.0)
    after = (mixed - mean) @ white
    assert torch.allclose(after.T @ after / 500, torch.eye(6).double(), atol=1e-10)
    assert torch.allclose(white, white.T, atol=1e-14)
    # With lambda, a direction of variance v keeps v / (v + lambda mean(v)).
    values = torch.linalg.eigvalsh((mixed - mean).T @ (mixed - mean) / 500)
    _, white = whitening(mixed, 0.1)
    after = (mixed - mean) @ white
    kept = torch.linalg.eigvalsh(after.T @ after / 500)
    assert torch.allclose(kept, values / (values + 0.1 * values.mean()), atol=1e-10)


def test_a_direction_without_variance_stays_out() -> None:
    flat = torch.cat([torch.randn(50, 2).double(), torch.ones(50, 1).double()], 1)
    mean, white = whitening(flat, 0.0)
    after = (flat - mean) @ white
    expected = torch.diag(torch.tensor([1.0, 1.0, 0.0])).double()
    assert torch.allclose(after.T @ after / 50, expected, atol=1e-10)


@pytest.mark.parametrize("regularisation", [0.01, None])
def test_codes_by_a_loop(regularisation: float | None) -> None:
    """Every patch is compared with every patch of the dictionary, of both signs."""
    layer = NearestPatches(2, 5, 3, 0.4, pool=2, stride=1, regularisation=regularisation).double()
    x = torch.randn(7, 2, 6, 5).double()
    layer.fit(x, torch.Generator().manual_seed(3))
    patches = F.unfold(x, 3).transpose(1, 2).flatten(0, 1)
    chosen = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(3))[:5]]
    mean, white = whitening(patches, regularisation)
    codes = torch.zeros(7, 10, 4, 3).double()
    for n in range(7):
        for i in range(4):
            for j in range(3):
                p = white @ (x[n, :, i : i + 3, j : j + 3].flatten() - mean)
                for sign, first in ((-1, 0), (1, 5)):
                    distances = [(p + sign * white @ (d - mean)).norm() for d in chosen]
                    for d in torch.stack(distances).argsort()[:2]:  # 0.4 of 5
                        codes[n, first + d, i, j] = 1
    assert torch.equal(layer(x), F.avg_pool2d(codes, 2, 1))


def test_the_second_dictionary_is_made_of_the_first_ones_output() -> None:
    network = models.patches((1, 8, 8), 3, (6, 9), (3, 2), (2, 1), (1, 1), kernel_size=2).double()
    x = torch.randn(20, 1, 8, 8).double()
    network.fit_to(x, 0)
    first, second, _ = network
    alone = NearestPatches(12, 9, 2).double()
    generator = torch.Generator().manual_seed(0)
    torch.randperm(20 * 36, generator=generator)  # drew the first dictionary
    alone.fit(first(x), generator)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, second.get_buffer(name)), name
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"classifier"}
    assert not any(isinstance(m, nn.ReLU) for m in network.modules())


def test_refused() -> None:
    with pytest.raises(InputError, match=r"give one number for each layer in all four"):
        models.patches(patches=(8, 8))
    with pytest.raises(InputError, match=r"the layers leave maps of 1 x 1"):
        models.patches((1, 8, 8), sizes=(3,), kernel_size=3)
    with pytest.raises(InputError, match=r"have 4 patches; give fewer"):
        models.patches((1, 8, 8), 3, (5,), (7,), (1,), (1,), kernel_size=1).fit_to(
            torch.randn(1, 1, 8, 8)
        )
