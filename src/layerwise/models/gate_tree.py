"""A tree of small networks, one for each gate of a Boolean circuit."""

from __future__ import annotations

import math

from torch import nn

from layerwise.arguments import checks_arguments
from layerwise.errors import InputError
from layerwise.models.building_blocks import Shape, chain, check_sizes


@checks_arguments
def gate_tree(shape: Shape = (1, 1, 8), num_classes: int = 2, width: int = 8) -> nn.Sequential:
    """A full binary tree of neural gates, (linear, ReLU, linear) on two neighbours each, and a
    linear classifier of the root.

    Malach & Shalev-Shwartz 2019 (arXiv:1910.11923). Level l is the module `level<l>`, from the
    inputs up; it gives one number per gate, as maps (B, G, 1, 1).

    Args:
        shape: of a sample, (C, H, W); C H W inputs, a power of two from 2 on.
        num_classes: number of classes.
        width: hidden units of a gate.

    Raises:
        InputError: a size below 1; a number of inputs that is not a power of two.
    """
    check_sizes("gate_tree", shape, num_classes, width=width)
    inputs = math.prod(shape)
    depth = inputs.bit_length() - 1
    if inputs != 2**depth or depth == 0:
        raise InputError(
            f"gate_tree(shape={tuple(shape)}): {inputs} inputs are not the leaves of a full binary "
            "tree; give 2, 4, 8, ..."
        )
    named: list[tuple[str, nn.Module]] = []
    for level in range(1, depth + 1):
        gates = inputs >> level
        first = [nn.Flatten(), nn.Unflatten(1, (inputs, 1, 1))] if level == 1 else []
        layers = [
            *first,
            nn.Conv2d(2 * gates, gates * width, 1, groups=gates),
            nn.ReLU(inplace=True),
            nn.Conv2d(gates * width, gates, 1, groups=gates),
        ]
        named.append((f"level{level}", nn.Sequential(*layers)))
    last = nn.Sequential(nn.Flatten(), nn.Linear(1, num_classes))
    return chain([*named, ("classifier", last)])
