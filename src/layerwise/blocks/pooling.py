"""The output of a block before the pooling that ends it."""

from __future__ import annotations

from torch import nn

from layerwise.blocks.parts import modules_in_order

POOLINGS = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)
AFTER = (nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd)  # compute nothing of their own


def before_pooling(block: nn.Module) -> tuple[nn.Sequential, nn.Sequential] | None:
    """A block in two parts: the modules before the pooling that ends it, and the rest.

    Only a chain is divided (`nn.Sequential`, also nested). Dropout and flattening may follow the
    pooling. The modules are the block's own. None if the block does not end with a pooling.
    """
    modules = modules_in_order(block)
    last = len(modules) - 1
    while last > 0 and isinstance(modules[last], AFTER):
        last -= 1
    if last < 1 or not isinstance(modules[last], POOLINGS):
        return None
    return nn.Sequential(*modules[:last]), nn.Sequential(*modules[last:])
