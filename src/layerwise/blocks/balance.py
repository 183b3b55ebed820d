"""Where to cut so that the blocks cost about the same."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from torch import fx

from layerwise.blocks.cost import saved
from layerwise.blocks.flow import Flow
from layerwise.blocks.huggingface import is_huggingface
from layerwise.blocks.partition import partition
from layerwise.blocks.unchanged import unchanged
from layerwise.errors import InputError

Balance = Literal["flops", "memory"]


def balanced(flow: Flow, blocks: int | Literal["all"], balance: Balance) -> list[int]:
    """Where in `flow.data` each of `blocks` parts begins; the first is 0.

    Raises:
        InputError: fewer cut points than that.
    """
    starts = _busy(flow, [0, *flow.cut_points])
    ends = [*starts[1:], len(flow.data)]
    starts = [
        i for i, end in zip(starts, ends, strict=True) if i == 0 or not flow.changes_input(i, end)
    ]
    shared = {i: name for i in starts[1:] if (name := flow.shared_parameter(i)) is not None}
    starts = [i for i in starts if i not in shared]
    if blocks == "all" and (len(starts) > 1 or not shared):
        return starts
    if blocks == "all" or blocks > len(starts):
        tied, count = next(iter(shared.values()), None), len(starts) - 1
        untie = f"{tied!r} is: untie it" if tied else ""
        untie += ", tie_word_embeddings=False" if tied and is_huggingface(flow.model) else ""
        raise InputError(
            f"cut(blocks={blocks!r}): {type(flow.model).__name__} has {count} cut point"
            f"{'s' if count != 1 else ''}"
            f"{f' where no parameter is used on both sides ({untie})' if tied else ''}; "
            f"give blocks={count + 1}{' or fewer' if count else ''}"
        )
    costs = _saved_bytes(flow, starts) if balance == "memory" else _flops(flow, starts)
    return [starts[i] for i in partition(costs, blocks)]


def _busy(flow: Flow, starts: list[int]) -> list[int]:
    """Give every piece without FLOPs to the one before it, and one at the beginning to the next.

    Where such pieces make a vector of feature maps or tokens (flatten, the class token), that goes
    with the layer that reads the vector: heads before it still see the maps.
    """
    flops = dict(zip(starts, _flops(flow, starts), strict=True))
    busy = [0, *[i for i in starts if flops[i] > 0][1:]]
    idle = [[j for j in reversed(starts) if before < j < i] for before, i in pairwise(busy)]
    return [0, *map(flow.with_flatten, busy[1:], idle)]


def _flops(flow: Flow, starts: list[int]) -> list[int]:
    """Forward FLOPs of each part, for two samples."""
    return [flow.flops(i, end) for i, end in pairwise([*starts, len(flow.data)])]


def _saved_bytes(flow: Flow, starts: list[int]) -> list[int]:
    """Bytes that each part keeps for its backward pass in train mode, for two samples.

    What several parts keep counts for the first.
    """
    with unchanged(flow.model), saved(flow.model) as kept:  # training moves running statistics
        flow.model.train()
        meter = _Meter(flow, starts, lambda: kept.bytes)
        meter.run(flow.x)
        readings = [0, *meter.readings, kept.bytes]
    return [after - before for before, after in pairwise(readings)]


class _Meter(fx.Interpreter):
    """Runs a graph and reads a meter where each part begins."""

    def __init__(self, flow: Flow, starts: list[int], read: Any):
        super().__init__(flow.model, graph=flow.graph)
        self.begins = {flow.data[i] for i in starts[1:]}
        self.read, self.readings = read, []

    def run_node(self, n: fx.Node) -> Any:
        if n in self.begins:
            self.readings.append(self.read())
        return super().run_node(n)
