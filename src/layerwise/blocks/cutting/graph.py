"""The autograd graph of a recorded run: which tensors are alive at a moment.

PyTorch numbers autograd nodes in the order in which they are made. That number serves as the time
of a run. At a moment between two nodes, a tensor is *alive* if it was made before and is used
after. A moment at which exactly one tensor is alive is a cut point.

Nodes are of two kinds. *Data* nodes depend on the network's inputs; only their tensors count as
alive. The others make *tables* of parameters alone (relative positions, for instance), which may
cross a cut.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import defaultdict

import torch
from torch import Tensor

from layerwise.blocks.cutting.data_flow import Node

Output = tuple[Node, int]  # a tensor, as the i-th output of a node
Life = tuple[int, float, Output]  # the time when a tensor is made, the time of its last use, it


class Graph:
    """The autograd graph behind a tensor.

    Args:
        root: the tensor, such as a network's class scores.
        data_nodes: nodes known to depend on the network's inputs (`Recording.data_nodes`).

    Attributes:
        time_of: the time of each node.
        data: the data nodes.
        uses: for each parameter, the times of the data nodes that read it, or read a table made of
            it, in increasing order.
    """

    def __init__(self, root: Tensor, data_nodes: set[Node]):
        self.time_of: dict[Node, int] = {}
        self._inputs: dict[Node, list[Node]] = {}  # for each node, those whose outputs it reads
        self._users: dict[Output, list[float]] = defaultdict(list)  # times of a tensor's uses
        parameters = self._walk(root)
        in_order = sorted(self.time_of, key=self.time_of.__getitem__)
        self.data = self._find_data(in_order, data_nodes)
        self.uses = self._find_uses(in_order, parameters)
        lives = [(self.time_of[o[0]], max(times), o) for o, times in self._users.items()]
        self._lives = sorted((l for l in lives if l[2][0] in self.data), key=lambda l: l[0])
        self._tables = [l for l in lives if l[2][0] not in self.data]
        # For `only_alive`. Lives are numbered by their start. Sums of these numbers tell, if one
        # life more has started than ended, which one it is.
        self._born = [born for born, _, _ in self._lives]
        self._sum_of_born = [0, *itertools.accumulate(range(len(self._lives)))]
        ends = sorted((last, i) for i, (_, last, _) in enumerate(self._lives))
        self._died = [last for last, _ in ends]
        self._sum_of_died = [0, *itertools.accumulate(i for _, i in ends)]

    def _walk(self, root: Tensor) -> dict[Node, list[Tensor]]:
        """Visit all nodes behind the root; returns the parameters that each node reads."""
        parameters: dict[Node, list[Tensor]] = defaultdict(list)
        todo: list[Node] = []
        if root.grad_fn is not None:
            todo.append(root.grad_fn)
            self._users[root.grad_fn, root.output_nr].append(math.inf)
        while todo:
            node = todo.pop()
            if node in self.time_of:
                continue
            time = self.time_of[node] = node._sequence_nr()
            inputs = self._inputs[node] = []
            for before, index in node.next_functions:
                if before is None:
                    continue
                if hasattr(before, "variable"):
                    parameters[node].append(before.variable)
                    continue
                inputs.append(before)
                self._users[before, index].append(time)
                todo.append(before)
        return parameters

    def _find_data(self, in_order: list[Node], known: set[Node]) -> set[Node]:
        data: set[Node] = set()
        for node in in_order:
            custom = isinstance(node, torch.autograd.function.BackwardCFunction)
            if node in known or custom or any(n in data for n in self._inputs[node]):
                data.add(node)
        return data

    def _find_uses(
        self, in_order: list[Node], parameters: dict[Node, list[Tensor]]
    ) -> dict[Tensor, list[int]]:
        # For each table, the times of the data nodes that read it, or read a table made of it.
        readers: dict[Node, set[int]] = defaultdict(set)
        for node in reversed(in_order):
            reads = {self.time_of[node]} if node in self.data else readers[node]
            for before in self._inputs[node]:
                if before not in self.data:
                    readers[before] |= reads
        uses: dict[Tensor, set[int]] = defaultdict(set)
        for node, variables in parameters.items():
            for variable in variables:
                uses[variable] |= {self.time_of[node]} if node in self.data else readers[node]
        return {variable: sorted(times) for variable, times in uses.items()}

    def only_alive(self, time: int) -> Output | None:
        """The one tensor that is alive at a moment; None if there is not exactly one."""
        born, died = bisect.bisect_left(self._born, time), bisect.bisect_left(self._died, time)
        if born - died != 1:
            return None
        return self._lives[self._sum_of_born[born] - self._sum_of_died[died]][2]

    def alive(self, time: int) -> list[Output]:
        """All tensors that are alive at a moment and depend on the network's inputs."""
        return [output for born, last, output in self._lives if born < time <= last]

    def tables_at(self, time: int) -> list[int]:
        """The times of all nodes that make the tables which are alive at a moment."""
        todo = [output[0] for born, last, output in self._tables if born < time <= last]
        found: set[Node] = set()
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo += self._inputs[node]
        return [self.time_of[node] for node in found]

    def used_only_before(self, output: Output, time: int, until: float) -> bool:
        """Whether every use of a tensor after `time` is before `until`."""
        return all(time > use or use < until for use in self._users.get(output, ()))

    def parameters_used(self, start: float, end: float) -> bool:
        """Whether any parameter is used from `start` to before `end`."""
        return any(
            bisect.bisect_left(times, start) < bisect.bisect_left(times, end)
            for times in self.uses.values()
        )
