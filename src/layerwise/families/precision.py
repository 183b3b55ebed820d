"""Rules whose signal is a difference of nearly equal activities."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from layerwise.blocks import Blocks


@contextlib.contextmanager
def full_precision(x: Tensor, blocks: Blocks) -> Iterator[Tensor]:
    """Without autocast, whose 8 bits leave noise of such a difference; gives `x` in the precision
    of the weights."""
    weight = next(blocks.parameters(), x)
    with torch.autocast(x.device.type, enabled=False):
        yield x.to(weight.dtype) if x.is_floating_point() else x
