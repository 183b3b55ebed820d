"""The optimizer of airbench: Muon on filters, SGD on the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerwise import InputError
from layerwise.trainer.optim import ConvMuon, Linear
from layerwise.trainer.optim.muon import FilterMuon, orthogonalized


def test_singular_values_come_close_to_one() -> None:
    for shape in ((8, 24), (24, 8)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)).float())
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_directions_stay() -> None:
    """The iteration is an odd polynomial of the singular values: U and V do not change."""
    u, s, v = torch.linalg.svd(torch.randn(6, 10), full_matrices=False)
    found = u.T @ orthogonalized((u * s) @ v) @ v.T
    assert (found - found.diag().diag()).abs().max() < 0.05


def test_a_step_by_hand() -> None:
    """A filter (1, 1, 2, 2) is a row, whose orthogonalization is the same for every length. The
    same gradient comes twice, so momentum does not turn it."""
    w = nn.Parameter(torch.tensor([3.0, 0.0, 4.0, 0.0]).view(1, 1, 2, 2))
    optimizer = FilterMuon([w], lr=0.1, momentum=0.5)
    along = torch.tensor([0.0, 1.0, 0.0, 0.0])
    size = float(orthogonalized(along[None])[0, 1])
    assert 0.7 < size < 1.2
    expected = torch.tensor([0.6, 0.0, 0.8, 0.0])
    for _ in range(2):
        w.grad = torch.tensor([0.0, 2.0, 0.0, 0.0]).view(1, 1, 2, 2)
        optimizer.step()
        expected = expected / expected.norm() - 0.1 * size * along
    torch.testing.assert_close(w.detach().flatten(), expected, atol=1e-5, rtol=0)


def test_vectors_and_matrices_have_their_own_rates_and_decay() -> None:
    """One step of Nesterov SGD by hand: w - lr (1 + momentum) (g + decay / lr w)."""
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    recipe = ConvMuon(lr_matrices=0.1, lr_vectors=0.5, momentum_others=0.5, weight_decay=0.02)
    optimizer = recipe([matrix, vector, nn.Parameter(torch.ones(2, 2, 3, 3))])
    matrix.grad, vector.grad = torch.full((2, 2), 2.0), torch.full((2,), 2.0)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 1 - 0.1 * 1.5 * 2.2))
    torch.testing.assert_close(vector.detach(), torch.full((2,), 1 - 0.5 * 1.5 * 2.04))


def test_linear_schedule() -> None:
    factor = Linear(warmup=1.0).factor(6, 2)
    assert [factor(step) for step in range(7)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25, 0]
    )


def test_rates_are_checked() -> None:
    with pytest.raises(InputError, match="lr_vectors"):
        ConvMuon(lr_vectors=0.0)
