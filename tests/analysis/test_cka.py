"""Centred kernel alignment against numbers found by hand, and against its formula."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from torch import Tensor, nn

from layerwise import Blocks, InputError
from layerwise.analysis import cka, linear_cka
from layerwise.data import Images, Loader


def hsic_1(k: Tensor, l: Tensor) -> Tensor:
    """Song et al. 2012, as Nguyen et al. 2021 have it in eq. 3."""
    n, one = len(k), torch.ones(len(k), dtype=k.dtype)
    k, l = k - k.diag().diag(), l - l.diag().diag()
    three = (
        (k @ l).trace()
        + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ l @ one)
    )
    return three / (n * (n - 3))


def test_by_hand():
    """x = (0, 1, 2)', centred (-1, 0, 1); y = (0, 0, 3)', centred (-1, -1, 2).

    One feature each: CKA is their squared correlation, 3^2 / (2 * 6) = 3/4.
    """
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [0.0], [3.0]])
    assert linear_cka(x, y).item() == pytest.approx(0.75)


def test_two_by_two_features():
    """x = ((1, 0), (0, 1), (0, 0)), y = ((2, 0), (0, 0), (0, 0)).

    Centred, in thirds: x = ((2, -1), (-1, 2), (-1, -1)), y's first column (4, -2, -2).
    x'y = (8 + 2 + 2, -4 - 4 + 2) / 9 = (4/3, -2/3), squared norm 20/9.
    x'x = ((6, -3), (-3, 6)) / 9: norm sqrt(90) / 9; y'y = 24/9.
    20/9 / (sqrt(90) 24 / 81) = 0.7905694.
    """
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    y = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert linear_cka(x, y).item() == pytest.approx(0.7905694)


def test_unbiased_by_hand():
    """x = (1, 1, 0, 0)', y = (1, 0, 1, 0)': without their diagonals K has ones at 12 and 21, L at
    13 and 31; n = 4, so 4 HSIC_1 is

    (K, K): 2 + 2 * 2 / 6 - 2 = 2/3, and (L, L) the same;
    (K, L): 0 + 2 * 2 / 6 - (1, 1, 0, 0) (1, 0, 1, 0)' = -1/3.
    """
    x, y = torch.tensor([[1.0], [1.0], [0.0], [0.0]]), torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    assert linear_cka(x, y, unbiased=True).item() == pytest.approx(-0.5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_rotated_and_scaled_is_the_same(unbiased):
    x = torch.randn(9, 4, 2, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    y = 3 * x.flatten(1) @ rotation + 5
    assert linear_cka(x, y, unbiased=unbiased).item() == pytest.approx(1, abs=1e-12)


def test_many_features_of_noise():
    """The biased estimate goes to 1 with the number of features, the unbiased one stays at 0."""
    x, y = torch.randn(20, 2000), torch.randn(20, 2000)
    assert linear_cka(x, y) > 0.8
    assert abs(linear_cka(x, y, unbiased=True)) < 0.1


def test_its_formula():
    x, y = torch.randn(7, 3).double(), torch.randn(7, 5).double()
    k, l = x @ x.T, y @ y.T
    wanted = hsic_1(k, l) / (hsic_1(k, k) * hsic_1(l, l)).sqrt()
    assert linear_cka(x, y, unbiased=True).item() == pytest.approx(wanted.item(), abs=1e-12)


def _loader(batch: int, count: int = 14, labels: int = 3) -> Loader:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 8, 8, 2), dtype=torch.uint8, generator=generator)
    return Loader(Images(pixels, torch.arange(count) % labels), batch, train=False)


def test_two_networks_batch_by_batch():
    """Means of HSIC_1 over batches of 5 and 5; the third, of 2, is left out."""
    a, b = networks.cnn().blocks, networks.plain_cnn().blocks
    loader = _loader(5, count=12)
    found = cka(a, b, loader)
    assert found.shape == (4, 3)
    kernels = [(_kernels(a, x), _kernels(b, x)) for x, _ in list(loader.epoch(0))[:2]]
    for i in range(4):
        for j in range(3):
            both = sum(hsic_1(k[i], l[j]) for k, l in kernels)
            own = sum(hsic_1(k[i], k[i]) for k, _ in kernels)
            other = sum(hsic_1(l[j], l[j]) for _, l in kernels)
            wanted = both.item() / math.sqrt(own * other)
            # In single precision the sums nearly cancel.
            assert found[i, j].item() == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@torch.no_grad()
def _kernels(blocks: Blocks, h: Tensor) -> list[Tensor]:
    found = []
    for block in blocks.eval():
        h = block(h)
        found.append(h.flatten(1).double() @ h.flatten(1).double().T)
    return found


def test_a_network_with_itself():
    blocks = networks.cnn().blocks
    found = cka(blocks, blocks, _loader(7))
    torch.testing.assert_close(found.diag(), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(found, found.T)


def test_the_networks_do_not_notice():
    a, b = networks.cnn(dropout=0.3).blocks, networks.cnn().blocks
    b[0].eval()
    modes = [m.training for m in (*a.modules(), *b.modules())]
    state, random = {k: v.clone() for k, v in a.state_dict().items()}, torch.get_rng_state()
    cka(a, b, _loader(7))
    assert [m.training for m in (*a.modules(), *b.modules())] == modes
    networks.assert_same(dict(a.state_dict()), state)
    assert torch.equal(torch.get_rng_state(), random)


class Erase(nn.Module):
    def forward(self, h):
        return h * 0


def test_what_does_not_vary_is_not_a_number():
    assert cka(Blocks([Erase()]), Blocks([nn.Identity()]), _loader(7)).isnan().all()


def test_what_cannot_be_compared():
    x = torch.randn(3, 2)
    with pytest.raises(InputError, match="got 3 and 2 samples; give the same samples"):
        linear_cka(x, x[:2])
    with pytest.raises(InputError, match="4 or more"):
        linear_cka(x, x, unbiased=True)
    blocks = networks.cnn().blocks
    with pytest.raises(InputError, match="their labels differ"):
        cka(blocks, blocks, _loader(7), _loader(7, labels=2))
    with pytest.raises(InputError, match="no batch of 4 samples"):
        cka(blocks, blocks, _loader(3))
