"""Counting the FLOPs that a training step executes, and the part of them in heads."""

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
    """FLOPs of one step; a multiplication and an addition count as two.

    Attributes:
        total: of all forward passes, also repeated ones, and all backward passes.
        heads: the part of `total` in objectives and auxiliary networks.
        head_forwards: for each block, the part of `heads` in forward passes.
    """

    total: int
    heads: int
    head_forwards: tuple[int, ...]


def count_flops(step: Callable[[], object], rule: Rule | None = None) -> Flops:
    """Count the FLOPs of `step()`: matrix products, convolutions and attention.

    Element-wise operations, normalisation, pooling and the optimizer are not counted.

    Args:
        step: one training step; it is called once.
        rule: the rule that `step` runs, to count its heads separately; None counts no heads.
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
    """Yields a dict that collects the FLOPs of auxiliary networks, by (block, direction)."""
    # The backward pass of an auxiliary network begins when the gradient of its output is there. It
    # has ended when the gradient of its input is there or, if its input is detached, the gradients
    # of all its weights: autograd runs in the reverse order of recording. If neither is needed, it
    # ends with the whole backward pass.
    flops: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    under_way: list[nn.Module] = []
    open_backward: set[int] = set()

    def begin(i: int, direction: str) -> None:
        flops[i, direction].append(-so_far())

    def end(i: int, direction: str) -> None:
        flops[i, direction].append(so_far())

    def begin_backward(i: int) -> None:
        if i in open_backward:  # the block's second head, in the same backward pass
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
        if len(under_way) == 1:  # a head inside an objective is counted with the objective
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
