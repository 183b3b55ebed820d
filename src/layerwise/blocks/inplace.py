"""Blocks that write over their own input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from layerwise.blocks.stretches import Stretch


def starts_in_place(block: nn.Module) -> bool:
    """Whether the first layer of a block works in place, as `nn.ReLU(inplace=True)` does. A stretch
    of a network that was cut does not: `cut` sees to it."""
    if isinstance(block, Stretch):
        return False
    first = next((m for m in block.modules() if not any(m.children())), block)
    return bool(getattr(first, "inplace", False))


def kept(block: nn.Module, h: Any) -> Any:
    """`h` as the input of a block that must not change it: a copy where the block starts in place,
    otherwise `h` itself.

    A leaf that requires grad becomes a view, because hooks on what a module is given do not work
    together with `torch.autograd.grad` at a leaf.
    """
    if not isinstance(h, Tensor):
        return h
    if starts_in_place(block):
        return h.clone()
    return h.view_as(h) if h.requires_grad and h.is_leaf else h
