"""The parts of a block: as a sequence of modules, and as layers with a weight each.

Used by rules that learn with layers of the network (AugLocal, MAN), and by `pooling.py`,
`copies.py` and `receptive.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from layerwise.blocks.chain import Blocks, dry_run
from layerwise.blocks.layout import Shape, laid_out
from layerwise.blocks.stretch import Stretch
from layerwise.inputs import Inputs, applied


class Layers(nn.Sequential):
    """Modules called one after the other, some of which may read the network's inputs."""

    reads_inputs = True

    @property
    def holders(self) -> list[nn.Module]:
        """The modules that hold parameters and buffers, in the same order in every copy."""
        found: dict[nn.Module, None] = {}
        for module in self:
            stretch = isinstance(module, Stretch)
            found |= dict.fromkeys((m for m, _ in module.places) if stretch else module.modules())
        return list(found)

    def forward(self, input: Tensor, inputs: Inputs = None) -> Tensor:
        h = input
        for module in self:
            h = applied(module, h, inputs)
        return h


def layers(block: nn.Module) -> list[Layers]:
    """A block as its layers, each a chain of the block's own modules.

    A layer is a module with a weight (a parameter of more than one axis) and everything that
    follows it up to the next one: normalisation, activation, pooling, dropout. A flatten goes with
    the layer that reads the vector. Only a chain is divided (`nn.Sequential`, also nested).
    Anything else, such as a residual block or a transformer layer, is one layer as a whole. A block
    without weights is one layer.
    """
    found: list[list[nn.Module]] = [[]]
    for module in modules_in_order(block):
        if has_weight(module) and any(map(has_weight, found[-1])):
            flattens = []
            while isinstance(found[-1][-1], nn.Flatten):
                flattens.insert(0, found[-1].pop())
            found.append(flattens)
        found[-1].append(module)
    return [Layers(*layer) for layer in found]


def modules_in_order(block: nn.Module) -> list[nn.Module]:
    """A block as modules called one after the other, with nested chains opened.

    A module with hooks or with code of its own stays whole.
    """
    if isinstance(block, Stretch) and block.chain is not None:
        return [part for module in block.chain for part in modules_in_order(module)]
    if type(block) is not nn.Sequential or block._forward_hooks or block._forward_pre_hooks:
        return [block]
    return [part for child in block for part in modules_in_order(child)]


def has_weight(module: nn.Module) -> bool:
    """Whether a module has a parameter of more than one axis."""
    return any(p.dim() > 1 for p in module.parameters())


def shapes_of_layers(blocks: Blocks, i: int) -> list[Shape]:
    """The shape of the input of each layer of block `i` > 0, and of the block's output, without the
    batch dimension."""
    assert blocks.shapes is not None
    before, after = blocks.shapes[i - 1], blocks.shapes[i]
    weight = next(blocks.parameters(), torch.zeros(()))
    parts, inputs = layers(blocks[i]), blocks.zeros(2, weight)

    def run(axis: int | None = None) -> Iterator[Shape]:
        h = torch.zeros(2, *before).to(weight)
        h = h if axis is None else torch.cat([h, h], axis)
        for layer in parts[:-1]:
            with dry_run(layer):
                h = layer(h, inputs)
            yield tuple(h.shape[1:])

    return [before, *laid_out(before, list(run()), run)[1:], after]
