"""Rules whose signal is a difference of nearly equal activities."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def full_precision(x: Tensor, network: nn.Module) -> Iterator[Tensor]:
    """Without autocast, whose 8 bits leave noise of such a difference; gives `x` in the precision
    of the network's weights."""
    weight = next(network.parameters(), x)
    with torch.autocast(x.device.type, enabled=False):
        yield x.to(weight.dtype) if x.is_floating_point() else x
