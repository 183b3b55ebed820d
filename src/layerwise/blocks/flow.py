"""How data flows through a graph, and where exactly one tensor crosses."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from layerwise.blocks.record import Record, record

# Set in the `meta` of a node of a hand-written graph whose value depends on the shape, dtype and
# device of its input only (positions, a causal mask): any block can compute it from its own input.
SHAPE_ONLY = "shape_only"


class Flow:
    """A graph's nodes by what they carry.

    Every node is one of three: *data*, a tensor computed from the model's input; a *size*, which
    is no tensor but was read from one (the batch size for a later `view`); or *free*, which does
    not depend on the input (a parameter, a constant). Data crosses a cut; sizes and free nodes are
    computed again in the block that needs them.

    Args:
        model: what the graph's modules and parameters belong to.
        graph: its forward, from one tensor to one tensor.
        x: a batch of two, (2, ...); the model is run on it in the mode that it is in.

    Attributes:
        data: the data nodes in the order of execution, the model's input first.
        index: where in `data` each of them stands.
        output: the node that the model returns.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, x: Tensor):
        self.model, self.graph, self.x = model, graph, x
        self._record = record(model, graph, x)
        self.data: list[fx.Node] = []
        self._from_input: set[fx.Node] = set()
        for node in graph.nodes:
            if node.op == "placeholder" or self._from_input.intersection(node.all_input_nodes):
                self._from_input.add(node)
                hidden = node.op == "output" or SHAPE_ONLY in node.meta
                if self._record.carries_tensor(node) and not hidden:
                    self.data.append(node)
        self.index = {node: i for i, node in enumerate(self.data)}
        self.output: fx.Node = next(reversed(graph.nodes)).all_input_nodes[0]

    @cached_property
    def cut_points(self) -> list[int]:
        """Every i > 1 such that `data[i:]` needs of `data[:i]` exactly one tensor."""
        return [
            i for i in range(2, len(self.data)) if len(self.crossing(i)) == 1 and self.can_cut(i)
        ]

    def crossing(self, i: int) -> list[fx.Node]:
        """The data nodes that a cut before `data[i]` would have to carry across."""
        return self._crossing[i]

    @cached_property
    def _crossing(self) -> list[list[fx.Node]]:
        live: dict[fx.Node, int] = {}  # node -> last use of its value
        crossing = []
        for i, node in enumerate(self.data):
            live = {n: last for n, last in live.items() if last >= i}
            crossing.append(list(live))
            uses = [self.index[user] for user in node.users if user in self.index]
            live[node] = len(self.data) if node is self.output else max(uses, default=-1)
        return crossing

    def can_cut(self, i: int) -> bool:
        """Whether, one value crossing before `data[i]`, it is a tensor and tells every size that
        is needed from there on."""
        (value,) = self.crossing(i)
        return value.op != "placeholder" and self.is_tensor(value) and not self.lost_sizes(i)

    def is_tensor(self, node: fx.Node) -> bool:
        return self._record.is_tensor(node)

    def is_free(self, node: fx.Node) -> bool:
        return node not in self._from_input

    def lost_sizes(self, i: int) -> list[fx.Node]:
        """The sizes needed from `data[i]` on that what crosses there does not tell."""
        return [
            size
            for node, sizes in self._sizes_of.items()
            if self.index[node] >= i
            for size in sizes
            if not self._told(size, i)
        ]

    @cached_property
    def _sizes_of(self) -> dict[fx.Node, list[fx.Node]]:
        sizes = {
            node: [n for n in node.all_input_nodes if n not in self.index and not self.is_free(n)]
            for node in self.data
        }
        return {node: needed for node, needed in sizes.items() if needed}

    def _told(self, node: fx.Node, i: int) -> bool:
        if node in self.index:
            return self.index[node] >= i or node in self.crossing(i)
        if self.is_free(node) or SHAPE_ONLY in node.meta:
            return True
        if self.is_batch_size(node) and self._record.rows.get(self.crossing(i)[0]) == len(self.x):
            return True
        return all(self._told(n, i) for n in node.all_input_nodes)

    def is_batch_size(self, node: fx.Node) -> bool:
        """Whether a size is the batch size: 2 for a batch of two, and 3 for a batch of three."""
        return self._record.values[node] == 2 and self._record_of_three.values[node] == 3

    @cached_property
    def _record_of_three(self) -> Record:
        return record(self.model, self.graph, torch.cat([self.x, self.x[:1]]))

    def changes_input(self, start: int, end: int) -> bool:
        """Whether `data[start:end]` works in place on what crosses to it."""
        (crossing,) = self.crossing(start)
        return any(crossing in self._record.changed[node] for node in self.data[start:end])

    def crosses_as_vector(self, i: int) -> bool:
        """Whether what crosses before `data[i]` is one vector a sample, (B, D)."""
        (crossing,) = self.crossing(i)
        return self._record.axes[crossing] == 2

    def with_flatten(self, i: int, before: Iterable[int]) -> int:
        """Where what makes a vector for `data[i]` begins, else i.

        A block that reads a vector flattens for itself, so the one before it gives feature maps.

        Args:
            before: the cut points at which it may begin, the nearest first.
        """
        j = next((j for j in before if not self.crosses_as_vector(j)), i)
        return j if j < i and self.crosses_as_vector(i) else i

    def flops(self, start: int, end: int) -> int:
        """Forward floating-point operations of `data[start:end]` on the batch of two."""
        return sum(self._record.flops[node] for node in self.data[start:end])

    def shared_parameter(self, i: int) -> str | None:
        """A parameter that is used both before and from `data[i]` on."""
        return next((p for p, (first, last) in self._uses.items() if first < i <= last), None)

    @cached_property
    def _uses(self) -> dict[str, tuple[int, int]]:
        """Between which data nodes a parameter is used."""
        name_of = {p: name for name, p in self.model.named_parameters()}
        uses: dict[str, tuple[int, int]] = {}
        for i, node in enumerate(self.data):
            for parameter in self._parameters(node):
                if parameter in name_of:
                    first, _ = uses.get(name_of[parameter], (i, i))
                    uses[name_of[parameter]] = (first, i)
        return uses

    def _parameters(self, node: fx.Node) -> set[nn.Parameter]:
        found: set[nn.Parameter] = set()
        if node.op == "call_module":
            found.update(self.model.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            value = attribute(self.model, str(node.target))
            if isinstance(value, nn.Parameter):
                found.add(value)
        for n in node.all_input_nodes:
            if n not in self.index:
                found |= self._parameters(n)
        return found


def attribute(model: nn.Module, path: str) -> Any:
    """What a `get_attr` node stands for."""
    *parents, name = path.split(".")
    return getattr(model.get_submodule(".".join(parents)), name)
