"""FLOPs that a training step executes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from layerwise.blocks.cost import counted


@dataclass(frozen=True)
class Flops:
    """What one step executed; a multiplication and an addition are two.

    Attributes:
        total: forwards, backwards and repeated forwards.
        heads: of these, in the objectives and their auxiliary networks.
    """

    total: int
    heads: int


def count_flops(step: Callable[[], object], objectives: nn.ModuleDict) -> Flops:
    """FLOPs of `step()`: matrix products, convolutions and attention, forward and backward.

    Element-wise operations, normalisation, pooling and the optimizer are not counted.

    Args:
        step: one training step, run once.
        objectives: of the rule that `step` runs.
    """
    with counted() as counter, _counting_heads(objectives, counter.get_total_flops) as heads:
        step()
    return Flops(counter.get_total_flops(), sum(heads))


@contextlib.contextmanager
def _counting_heads(objectives: nn.ModuleDict, so_far: Callable[[], int]) -> Iterator[list[int]]:
    # An objective's part of the backward begins with the gradient of its loss and has ended when
    # the gradient of its input is there: autograd runs what was recorded last first.
    flops: list[int] = []

    def begin(*_: object) -> None:
        flops.append(-so_far())

    def end(*_: object) -> None:
        flops.append(so_far())

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        begin()

    def after(_: nn.Module, args: tuple[Tensor, ...], loss: Tensor) -> None:
        end()
        if loss.requires_grad and args[0].requires_grad:
            loss.register_hook(begin)
            args[0].register_hook(end)

    hooks = [
        hook
        for objective in objectives.values()
        for hook in (
            objective.register_forward_pre_hook(before),
            objective.register_forward_hook(after),
        )
    ]
    try:
        yield flops
    finally:
        for hook in hooks:
            hook.remove()
