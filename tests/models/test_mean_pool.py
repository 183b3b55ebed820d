"""The mean of feature maps, whose gradient keeps their memory format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerwise import heads
from layerwise.models.building_blocks import MeanPool2d


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bits_of_pytorchs_and_the_gradients_format(memory_format, dtype):
    h = torch.randn(3, 5, 4, 6, dtype=dtype).to(memory_format=memory_format).requires_grad_()
    weights = torch.randn(3, 5, 1, 1, dtype=dtype)
    ours, theirs = MeanPool2d()(h), nn.AdaptiveAvgPool2d(1)(h)
    (of_ours,) = torch.autograd.grad((ours * weights).sum(), h)
    (of_theirs,) = torch.autograd.grad((theirs * weights).sum(), h)
    assert torch.equal(ours, theirs)
    assert torch.equal(of_ours, of_theirs)
    assert of_ours.is_contiguous(memory_format=memory_format)


def test_heads_pool_with_it():
    assert type(heads.Linear(pool=1)((8, 4, 4), (10,))[0]) is MeanPool2d
    assert type(heads.Linear(pool=2)((8, 4, 4), (10,))[0]) is nn.AdaptiveAvgPool2d
