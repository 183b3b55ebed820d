"""What the nodes of a graph do when it is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from layerwise.blocks.cost import counted


class Record(fx.Interpreter):
    """Runs a graph and keeps of every node what is needed to divide it, but no tensor.

    Attributes:
        values: each node's value; tensors are left out.
        flops: its floating-point operations.
        rows: the first dimension of its tensor.
        axes: how many dimensions its tensor has.
        changed: the nodes among its inputs whose tensor it changes in place.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, meter: Callable[[], int]):
        super().__init__(model, graph=graph)
        self.meter = meter
        self.values: dict[fx.Node, Any] = {}
        self.flops: dict[fx.Node, int] = {}
        self.rows: dict[fx.Node, int] = {}
        self.axes: dict[fx.Node, int] = {}
        self.changed: dict[fx.Node, set[fx.Node]] = {}

    def run_node(self, n: fx.Node) -> Any:
        tensors = {i: t for i in n.all_input_nodes if isinstance(t := self.env[i], Tensor)}
        versions = {i: t._version for i, t in tensors.items()}
        before = self.meter()
        value = super().run_node(n)
        self.flops[n] = self.meter() - before
        self.changed[n] = {i for i, t in tensors.items() if t._version != versions[i]}
        self.values[n] = _without_tensors(value)
        if isinstance(value, Tensor) and value.dim() > 0:
            self.rows[n], self.axes[n] = len(value), value.dim()
        return value

    def is_tensor(self, node: fx.Node) -> bool:
        return self.values[node] is _TENSOR

    def carries_tensor(self, node: fx.Node) -> bool:
        return _any_tensor(self.values[node])


def record(model: nn.Module, graph: fx.Graph, x: Tensor) -> Record:
    """Run `graph` on a batch, (B, ...), in the mode that `model` is in."""
    with counted() as counter:
        run = Record(model, graph, counter.get_total_flops)
        run.run(x)
    return run


_TENSOR = object()


def _without_tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _TENSOR
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return [_without_tensors(v) for v in value]
    if isinstance(value, dict):
        return [_without_tensors(v) for v in value.values()]
    return value


def _any_tensor(value: Any) -> bool:
    return any(map(_any_tensor, value)) if isinstance(value, list) else value is _TENSOR
