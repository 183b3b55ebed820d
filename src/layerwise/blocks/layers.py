"""The layers that blocks are made of, and copies of them with fresh weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from layerwise.blocks.chain import Blocks, Shape, dry_run
from layerwise.blocks.pooling import layers_of
from layerwise.blocks.stretches import Stretch
from layerwise.inputs import Inputs, applied


class Layers(nn.Sequential):
    """Modules one after the other, some of which may read the network's inputs."""

    reads_inputs = True

    @property
    def holders(self) -> list[nn.Module]:
        """The modules that have parameters and buffers, in an order that a copy has, too."""
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

    A layer is a module with a weight (a parameter of more than one axis) and what follows it up to
    the next one: normalisation, activation, pooling, dropout. A flatten goes with the layer that
    reads the vector. Only a chain is divided (`nn.Sequential`, also nested): anything else, such as
    a residual block or a transformer layer, is one layer as it stands. A block without weights is
    one layer.
    """
    found: list[list[nn.Module]] = [[]]
    for module in layers_of(block):
        if has_weight(module) and any(map(has_weight, found[-1])):
            flattens = []
            while isinstance(found[-1][-1], nn.Flatten):
                flattens.insert(0, found[-1].pop())
            found.append(flattens)
        found[-1].append(module)
    return [Layers(*layer) for layer in found]


def has_weight(module: nn.Module) -> bool:
    return any(p.dim() > 1 for p in module.parameters())


def shapes_of_layers(blocks: Blocks, i: int) -> list[Shape]:
    """The shape of the input of each layer of block `i` > 0, without the batch dimension."""
    assert blocks.shapes is not None
    weight = next(blocks.parameters(), torch.zeros(()))
    h = torch.zeros(2, *blocks.shapes[i - 1]).to(weight)
    inputs = blocks.zeros(2, weight)
    shapes = []
    for layer in layers(blocks[i]):
        shapes.append(tuple(h.shape[1:]))
        with dry_run(layer):
            h = layer(h, inputs)
    return shapes


def copied(module: nn.Module) -> nn.Module:
    """A copy with parameters and buffers of its own."""
    if isinstance(module, Stretch):
        return module.copied()
    if isinstance(module, Layers):
        return Layers(*map(copied, module))
    return copy.deepcopy(module)


def fresh(module: nn.Module) -> nn.Module:
    """A copy to be trained, its weights drawn anew as PyTorch draws them for such a module.

    A parameter that no module knows how to draw (a learned position, a scale) starts as it stands.
    """
    made = copied(module).requires_grad_(True)
    for part in made.modules():
        draw = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
        if callable(draw):
            draw()
    for p in made.parameters():
        p.grad = None
    return made
