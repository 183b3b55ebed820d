"""Full precision, for rules whose signal is a difference of nearly equal activities."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from layerwise.autocast import without_autocast
from layerwise.inputs import converted, leading


@contextlib.contextmanager
def full_precision(x: Any, network: nn.Module) -> Iterator[Any]:
    """A context without autocast, whose 8 bits turn such a difference into noise.

    Args:
        x: a tensor, or the network's inputs.
        network: the network.

    Yields:
        `x` in the precision of the network's weights.
    """
    first = leading(x)
    weight = next(network.parameters(), first)
    with without_autocast(first.device):
        yield converted(x, weight.dtype)
