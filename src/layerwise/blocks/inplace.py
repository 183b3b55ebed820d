"""Blocks that overwrite their own input, or their layers' results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from layerwise.blocks.stretch import Stretch


def starts_in_place(block: nn.Module) -> bool:
    """Whether a block's first layer works in place, as `nn.ReLU(inplace=True)` does.

    A block that `cut` made never does: `cut` makes sure of that.
    """
    if isinstance(block, Stretch):
        return False
    first = next((m for m in block.modules() if not any(m.children())), block)
    return bool(getattr(first, "inplace", False))


def kept(block: nn.Module, h: Any) -> Any:
    """`h`, as an input that the block does not change: a copy if the block starts in place.

    A leaf that requires grad becomes a view, because backward hooks on a module's input do not work
    together with `torch.autograd.grad` at a leaf.

    Args:
        block: the block.
        h: its input, (B, ...); for the first block the network's inputs.
    """
    if not isinstance(h, Tensor):
        return h
    if starts_in_place(block):
        return h.clone()
    return h.view_as(h) if h.requires_grad and h.is_leaf else h


@contextlib.contextmanager
def out_of_place(block: nn.Module) -> Iterator[None]:
    """Within, no layer of the block overwrites the result of the layer before it, as
    `nn.ReLU(inplace=True)` does; functions such as `torch.relu_` still do."""
    changed = [m for m in block.modules() if getattr(m, "inplace", False) is True]
    try:
        for module in changed:
            module.inplace = False  # type: ignore[assignment]
        yield
    finally:
        for module in changed:
            module.inplace = True  # type: ignore[assignment]
