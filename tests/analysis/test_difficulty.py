"""What is learned, kept and forgotten, by hand."""

from __future__ import annotations

import pytest
import torch

from layerwise import InputError
from layerwise.analysis import difficulty


def test_by_hand():
    """Five samples over four epochs.

    right   1 1 1 1   at once
            0 0 1 1   late
            0 0 0 0   never
            1 0 1 0   twice forgotten
            0 1 0 0   once
    """
    right = torch.tensor(
        [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]], dtype=torch.bool
    ).T
    found = difficulty(right)
    assert found.consistency.tolist() == [1, 0.5, 0, 0.5, 0.25]
    assert found.forgotten.tolist() == [0, 0, 0, 2, 1]
    assert found.learned.tolist() == [True, True, False, True, True]
    assert found.unforgettable.tolist() == [True, True, False, False, False]


def test_one_epoch_forgets_nothing():
    assert difficulty(torch.tensor([[True, False]])).forgotten.tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(0, 3), (3,)])
def test_no_epoch(shape):
    with pytest.raises(InputError, match="give \\(epochs, samples\\)"):
        difficulty(torch.zeros(shape, dtype=torch.bool))
