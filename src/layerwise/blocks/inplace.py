"""Whether a block writes over its own input."""

from __future__ import annotations

from torch import nn

from layerwise.blocks.stretches import Stretch


def starts_in_place(block: nn.Module) -> bool:
    """Whether a block's first layer works in place, as `nn.ReLU(inplace=True)` does. A stretch of a
    network that was cut does not: `cut` sees to it."""
    if isinstance(block, Stretch):
        return False
    first = next((m for m in block.modules() if not any(m.children())), block)
    return bool(getattr(first, "inplace", False))
