"""Copies of blocks and of their layers: as they are, or with freshly drawn weights."""

from __future__ import annotations

import copy

from torch import nn

from layerwise.blocks.parts import Layers
from layerwise.blocks.stretch import Stretch


def copied(module: nn.Module) -> nn.Module:
    """A copy with parameters and buffers of its own."""
    if isinstance(module, Stretch):
        return module.copied()
    if isinstance(module, Layers):
        return Layers(*map(copied, module))
    return copy.deepcopy(module)


def fresh(module: nn.Module) -> nn.Module:
    """A trainable copy whose weights are drawn anew, as PyTorch draws them for such a module.

    A parameter that no module knows how to draw (a learned position, a scale) keeps its value.
    """
    made = copied(module).requires_grad_(True)
    for part in made.modules():
        draw = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
        if callable(draw):
            draw()
    for p in made.parameters():
        p.grad = None
    return made
