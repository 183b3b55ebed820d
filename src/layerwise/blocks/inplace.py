"""Whether a block overwrites its own input."""

from __future__ import annotations

from torch import nn

from layerwise.blocks.stretch import Stretch


def starts_in_place(block: nn.Module) -> bool:
    """Whether a block's first layer works in place, as `nn.ReLU(inplace=True)` does.

    A block that `cut` made never does: `cut` makes sure of that.
    """
    if isinstance(block, Stretch):
        return False
    first = next((m for m in block.modules() if not any(m.children())), block)
    return bool(getattr(first, "inplace", False))
