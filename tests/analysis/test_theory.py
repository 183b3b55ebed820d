"""Correlations of gates and variances of families of functions, where they are known."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from torch import nn

from layerwise import Blocks, rules
from layerwise.analysis import (
    class_variance,
    class_variance_bound,
    correlation_ratio,
    effective_rank,
    label_correlation,
)
from layerwise.data import Augment, Images, Loader
from layerwise.data.sources.boolean import Circuit, every_input, parities

UNIFORM = torch.randn(2**5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_correlation_of_gates_by_enumeration() -> None:
    """(a and b) or (c xor d) is false for 3/4 1/2 = 3/8 of all inputs. With p the and, q the xor
    and y the label, covariances are E[p y] - E[p] E[y] = 1/4 (1 - 5/8) = 3/32 and 1/2 (1 - 5/8) =
    3/16; variances are 3/16, 1/4 and 15/64. So the correlations are 3/32 / sqrt(3/16 15/64) =
    1/sqrt(5) and 3/16 / sqrt(1/4 15/64) = sqrt(3/5). A single bit of an xor has none."""
    bits = every_input(4)
    first, last = Circuit([["and", "xor"], ["or"]])(bits)
    y = last[:, 0]
    assert correlation_ratio(first, y).tolist() == pytest.approx([5**-0.5, 0.6**0.5])
    assert correlation_ratio(last, y).tolist() == pytest.approx([1.0])
    assert correlation_ratio(bits[:, 2:], y).tolist() == pytest.approx([0, 0], abs=1e-9)


def test_correlation_of_a_parity_by_its_bias() -> None:
    """With m = E[x] = 2p - 1, a product of 4 bits has E[x y] = m^3 and E[y] = m^4: the covariance
    is m^3 (1 - m^2) and the variances are 1 - m^2 and 1 - m^8."""
    bits = every_input(4)
    m, ones = 0.4, bits.sum(1).double()
    weights = 0.7**ones * 0.3 ** (4 - ones)
    wanted = m**3 * (1 - m**2) / math.sqrt((1 - m**2) * (1 - m**8))
    found = correlation_ratio(bits, bits.sum(1) % 2, weights)
    assert found.tolist() == pytest.approx([wanted] * 4)


def test_correlation_of_blocks() -> None:
    """Of three pixels, the first tells the last class from the two others, the second is constant,
    the third is only partly explained; images come in batches of 3 and 1."""
    pixels = torch.tensor([[0, 7, 3], [0, 7, 9], [2, 7, 4], [2, 7, 5]], dtype=torch.uint8)
    y = torch.tensor([0, 1, 2, 2])
    images = Images(pixels.view(4, 1, 3, 1), y)
    loader = Loader(images, 3, augment=Augment(normalize="none"), train=False)
    (found,) = label_correlation(Blocks([nn.Flatten()]), loader)
    # 3, 9, 4, 5 has mean 5.25 and variance 5.1875; within the last class it is 0.25 for half.
    assert found.tolist() == pytest.approx([1, 0, math.sqrt(1 - 0.125 / 5.1875)], abs=1e-6)
    case = networks.mlp()
    assert len(label_correlation(rules.DGL(case.blocks), _random(case.x.shape[1:]))) == len(
        case.blocks
    )


def _random(shape: torch.Size) -> Loader:
    images = torch.randint(256, (8, *shape[1:], shape[0]), dtype=torch.uint8)
    return Loader(Images(images, torch.arange(8) % 3), 4, train=False)


@pytest.mark.parametrize("phi", [UNIFORM, torch.ones(32), parities(5)[7]])
def test_variance_of_all_parities(phi: torch.Tensor) -> None:
    """|phi|^2 / 2^n, by Parseval's identity, and the bound is attained by every phi."""
    norm = phi.double().square().mean().item()
    assert class_variance(phi, parities(5)) == pytest.approx(norm / 2**5)
    assert class_variance_bound(parities(5)) == pytest.approx(1 / 2**5)


def test_variance_of_a_single_function() -> None:
    """One target is approximated by itself, two opposite ones too: their bound is 1."""
    target = parities(5, relevant=3)[4:5]
    for family in (target, torch.cat([target, -target])):
        assert class_variance(target[0], family) == pytest.approx(1)
        assert class_variance_bound(family) == pytest.approx(1)
    assert class_variance_bound(parities(5, relevant=3)) == pytest.approx(1 / 10)


def test_variance_where_the_inputs_reveal_the_target() -> None:
    """Parities of 3 of 5 bits, when half of the samples have equal relevant bits: a bit x_i has
    E[x_i f] = 1/2 if f reads it, which 6 of the 10 targets do, otherwise 0."""
    bits, targets = every_input(5), parities(5, relevant=3)
    reads = (targets[:, 2 ** torch.arange(4, -1, -1)] < 0).long()  # at the inputs with a single one
    ones = reads @ bits.T
    equal = (ones == 0) | (ones == 3)
    probability = 0.5 / 32 + 0.5 * equal / (2 * 4)  # the two other bits are uniform
    assert probability.sum(1).tolist() == pytest.approx([1] * 10)
    phi = 1.0 - 2.0 * bits[:, 0]
    found = class_variance(phi, targets, probability)
    assert found == pytest.approx(0.6 / 4)
    # Every family's bound lies above any of its functions within [-1, 1].
    assert class_variance_bound(targets, probability) >= found > 1 / 10
    with pytest.raises(ValueError, match=r"got phi \(3,\) and targets \(10, 32\)"):
        class_variance(torch.ones(3), targets)


def test_knee_under_conditional_independence() -> None:
    """X1 and X2 are independent given one of 4 classes, so Cov(X1, X2) = sum_c (m1_c - m1)
    (m2_c - m2)^T / 4 has rank 3, and so has the best linear prediction of X2 from X1, in exact
    arithmetic; with a I of dependence it has all 6."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    m1, m2 = centres - centres.mean(1, keepdim=True)
    within = torch.eye(6, dtype=torch.float64)  # the noise of X1
    pixels = torch.randint(256, (64, 1, 6, 1), generator=generator, dtype=torch.uint8)
    loader = Loader(Images(pixels, torch.arange(64) % 4), 16, train=False)
    for dependence, knee in ((0.0, 3), (0.9, None)):
        cross = m1.T @ m2 / 4
        given = (1 - dependence) * cross + dependence * (m1.T @ m1 / 4 + within)
        predict = nn.Sequential(nn.Flatten(), nn.Linear(6, 6, bias=False).double())
        predict[1].weight.data = torch.linalg.solve(m1.T @ m1 / 4 + within, given).T
        (found,) = effective_rank(Blocks([nn.Sequential(_Double(), predict)]), loader)
        assert found.knee == knee if knee else found.rank > 5


class _Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()
