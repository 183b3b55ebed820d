"""List the calls of linear and convolutional layers in a network."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Container
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.blocks.unchanged import trainable, unchanged
from layerwise.inputs import leading
from layerwise.rules.calls.as_written import as_written
from layerwise.rules.calls.products import Products
from layerwise.rules.calls.replaced import Back, replaced

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer.

    Attributes:
        x: the layer's input, (N, features); for a convolution (B, channels, ...).
        sends: whether the input has a gradient if all parameters are trained.
        maps: whether the layer is a convolution.
    """

    x: Tensor
    sends: bool
    maps: bool


def layer_calls(
    blocks: Blocks, asked_by: str, ends: Container[int] = (), change: bool = False
) -> dict[Tensor, list[Call]]:
    """The calls of layers in a pass of two samples.

    The network is left unchanged. A warning names parameters that are multiplied in another way
    than by a call of a layer. Both samples are zeros; BatchNorm does not mix them.

    Args:
        blocks: the network, made with an example.
        asked_by: the call, for errors.
        ends: the numbers of the blocks whose output continues detached.
        change: draw the second sample at random instead; all other random numbers stay the same.

    Returns:
        The calls, by the parameter that is their weight, as a whole or in part.

    Raises:
        InputError: the shapes between the blocks are not known.
    """
    blocks.known_shapes(asked_by, "its layers are not either")
    found: defaultdict[Tensor, list[Call]] = defaultdict(list)
    products = Products(dict(blocks.named_parameters()))

    def layer(
        name: str, op: Callable[..., Tensor], back: Back, x: Tensor, weight: Tensor
    ) -> Tensor:
        whole = weight if weight._base is None else weight._base
        found[whole].append(Call(x.detach(), x.requires_grad, "conv" in name))
        with products.paused():
            return op(x, weight)

    like = next((p for p in blocks.parameters() if p.is_floating_point()), torch.zeros(()))
    with (
        trainable(blocks),
        torch.enable_grad(),
        unchanged(blocks),
        replaced(layer),
        as_written(blocks),
        products,
    ):
        blocks.train()  # in eval mode a whole attention layer may be one kernel
        for module in blocks.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        h = blocks.zeros(2, like)
        if change:
            first = leading(h)
            first[1] = torch.randn_like(first[1]) if first.is_floating_point() else 1
        torch.manual_seed(0)  # dropout
        with blocks.passes(h) as passes:
            for k in range(len(blocks)):
                h = passes.run(k, h)
                h = h.detach() if k in ends else h
    if products.found:
        warnings.warn(
            f"{asked_by}: {', '.join(products.found)} is multiplied in another way than by a call "
            "of F.linear, F.conv or torch.addmm under these names, and keeps its true gradient; "
            "write F.linear(x, weight), not x @ weight.T or a function imported by itself",
            stacklevel=2,
        )
    return dict(found)
