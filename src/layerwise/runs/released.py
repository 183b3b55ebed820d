"""Parameters whose memory a process has given back, because another process has their values."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def release(parameters: Iterable[nn.Parameter]) -> None:
    """Give the memory of parameters back: each keeps its shape, type and device, and one number."""
    for p in parameters:
        p.grad = None
        p.data = p.data.new_zeros(()).expand(p.shape)


def is_released(tensor: Tensor) -> bool:
    """Whether `release` was called on a parameter."""
    return tensor.numel() > 1 and not any(tensor.stride())
