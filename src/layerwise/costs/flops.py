"""FLOPs that a training step executes."""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.blocks.cost import counted
from layerwise.objectives import Activity, Objective
from layerwise.rules.base import Rule


@dataclass(frozen=True)
class Flops:
    """What one step executed; a multiplication and an addition are two.

    Attributes:
        total: forwards, backwards and repeated forwards.
        heads: of these, in objectives and auxiliary networks.
        head_forwards: of these, in the forward passes of each block's.
    """

    total: int
    heads: int
    head_forwards: tuple[int, ...]


def count_flops(step: Callable[[], object], rule: Rule | None = None) -> Flops:
    """FLOPs of `step()`: matrix products, convolutions and attention, forward and backward.

    Element-wise operations, normalisation, pooling and the optimizer are not counted.

    Args:
        step: one training step, run once.
        rule: that `step` runs, whose heads are to be told from the network.
    """
    auxiliary = [] if rule is None else [rule.auxiliary(i) for i in range(len(rule.blocks))]
    with counted() as counter, _counting_heads(auxiliary, counter.get_total_flops) as heads:
        step()
    forwards = tuple(sum(heads.get((i, "forward"), [])) for i in range(len(auxiliary)))
    return Flops(counter.get_total_flops(), sum(map(sum, heads.values())), forwards)


@contextlib.contextmanager
def _counting_heads(
    auxiliary: Sequence[Sequence[nn.Module]], so_far: Callable[[], int]
) -> Iterator[dict[tuple[int, str], list[int]]]:
    # The backward of an auxiliary network begins with the gradient of what it gave and has ended
    # when that of what it read is there, or of all its weights where it read a detached tensor:
    # autograd runs what was recorded last first. Where neither is asked for, all has ended with it.
    flops: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    under_way: list[nn.Module] = []
    open_backward: set[int] = set()

    def begin(i: int, direction: str) -> None:
        flops[i, direction].append(-so_far())

    def end(i: int, direction: str) -> None:
        flops[i, direction].append(so_far())

    def begin_backward(i: int) -> None:
        if i in open_backward:  # a block's second head, in the same pass as its first
            return
        begin(i, "backward")
        open_backward.add(i)
        torch.autograd.Variable._execution_engine.queue_callback(lambda: end_backward(i))

    def end_backward(i: int) -> None:
        if i in open_backward:
            open_backward.remove(i)
            end(i, "backward")

    def before(i: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        under_way.append(module)
        if len(under_way) == 1:  # a head within an objective is counted with it
            begin(i, "forward")

    def after(i: int, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        under_way.pop()
        if under_way:
            return
        end(i, "forward")
        if not out.requires_grad:
            return
        read = args[0]
        if isinstance(read, Activity):
            assert isinstance(module, Objective)
            read = read.unpooled if module.reads_unpooled else read.output
        if read.requires_grad:
            out.register_hook(lambda _: begin_backward(i))
            read.register_hook(lambda _: end_backward(i))
        elif weights := [p for p in module.parameters() if p.requires_grad]:
            out.register_hook(lambda _: begin_backward(i))
            torch.autograd.graph.register_multi_grad_hook(weights, lambda _: end_backward(i))

    hooks = [
        hook
        for i, networks in enumerate(auxiliary)
        for module in {module for network in networks for module in network.modules()}
        for hook in (
            module.register_forward_pre_hook(functools.partial(before, i)),
            module.register_forward_hook(functools.partial(after, i)),
        )
    ]
    try:
        yield flops
    finally:
        for hook in hooks:
            hook.remove()
