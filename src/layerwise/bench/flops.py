"""FLOPs that a training step executes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.blocks.cost import counted
from layerwise.objectives import Objective


@dataclass(frozen=True)
class Flops:
    """What one step executed; a multiplication and an addition are two.

    Attributes:
        total: forwards, backwards and repeated forwards.
        heads: of these, in objectives and auxiliary networks.
    """

    total: int
    heads: int


def count_flops(step: Callable[[], object], auxiliary: Iterable[nn.Module]) -> Flops:
    """FLOPs of `step()`: matrix products, convolutions and attention, forward and backward.

    Element-wise operations, normalisation, pooling and the optimizer are not counted.

    Args:
        step: one training step, run once.
        auxiliary: of the rule that `step` runs, every block's (`Rule.auxiliary`).
    """
    with counted() as counter, _counting_heads(auxiliary, counter.get_total_flops) as heads:
        step()
    return Flops(counter.get_total_flops(), sum(heads))


@contextlib.contextmanager
def _counting_heads(
    auxiliary: Iterable[nn.Module], so_far: Callable[[], int]
) -> Iterator[list[int]]:
    # The backward of an auxiliary network begins with the gradient of what it gave and has ended
    # when that of what it read is there, or of all its weights where it read a detached tensor:
    # autograd runs what was recorded last first.
    flops: list[int] = []
    under_way: list[nn.Module] = []

    def begin(*_: object) -> None:
        flops.append(-so_far())

    def end(*_: object) -> None:
        flops.append(so_far())

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        under_way.append(module)
        if len(under_way) == 1:  # a head within an objective is counted with it
            begin()

    def after(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        under_way.pop()
        if under_way:
            return
        end()
        if not out.requires_grad:
            return
        unpooled = isinstance(module, Objective) and module.reads_unpooled
        read = args[1].unpooled if unpooled else args[0]
        if read.requires_grad:
            out.register_hook(begin)
            read.register_hook(end)
        elif weights := [p for p in module.parameters() if p.requires_grad]:
            out.register_hook(begin)
            torch.autograd.graph.register_multi_grad_hook(weights, end)

    modules = {module for network in auxiliary for module in network.modules()}
    hooks = [
        hook
        for module in modules
        for hook in (
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after),
        )
    ]
    try:
        yield flops
    finally:
        for hook in hooks:
            hook.remove()
