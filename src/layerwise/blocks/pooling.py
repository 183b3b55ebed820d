"""Where a block ends with a pooling, what it gives before."""

from __future__ import annotations

from torch import nn

from layerwise.blocks.stretches import Stretch

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
    """A block as what comes before the pooling that ends it, and the rest.

    Only a chain is divided (`nn.Sequential`, also nested); dropout and flattening may follow the
    pooling. The modules are the block's own. None where the block ends otherwise.
    """
    layers = layers_of(block)
    last = len(layers) - 1
    while last > 0 and isinstance(layers[last], AFTER):
        last -= 1
    if last < 1 or not isinstance(layers[last], POOLINGS):
        return None
    return nn.Sequential(*layers[:last]), nn.Sequential(*layers[last:])


def layers_of(block: nn.Module) -> list[nn.Module]:
    """A block as a chain without its nesting; what has hooks or code of its own stays whole."""
    if isinstance(block, Stretch) and block.chain is not None:
        return [layer for module in block.chain for layer in layers_of(module)]
    if type(block) is not nn.Sequential or block._forward_hooks or block._forward_pre_hooks:
        return [block]
    return [layer for child in block for layer in layers_of(child)]
