"""The places at which a network can be cut, and which of them begin a block."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from layerwise.blocks.balance import Balance, partition
from layerwise.blocks.sweep import Call, Cut, Graph, Moment, Output, Sweep
from layerwise.errors import InputError, choices


@dataclass(eq=False)
class Points:
    """The cut points of a network.

    Attributes:
        model: the network.
        found: a run of it in eval mode.
        graph: behind the run's class scores.
        points: the moments at which one tensor crosses, in order.
        rows: how many samples the run had.
        saved: bytes kept for the backward pass before each of `points`, and at the end.
        more: the shapes at all moments of a run with one sample more; nothing where there is none.
    """

    model: nn.Module
    found: Sweep
    graph: Graph
    points: list[Moment]
    rows: int
    saved: Sequence[int]
    more: Callable[[], dict[Cut, tuple[int, ...]]]
    _more: dict[Cut, tuple[int, ...]] | None = None

    def balanced(self, blocks: int | str, balance: Balance) -> list[Moment]:
        """Where each of `blocks` blocks but the first begins.

        Raises:
            InputError: fewer cut points than that.
        """
        points = [p for p in self.points if self.axis(p) is not None and not changed(p)]
        starts = self._busy(points)
        if blocks == "all":
            return starts
        count = len(starts)
        assert isinstance(blocks, int)
        if blocks > count + 1:
            several = f" ({self._what_crosses()})" if count == 0 else ""
            raise InputError(
                f"cut(blocks={blocks}): {type(self.model).__name__} has {count} cut point"
                f"{'s' if count != 1 else ''}{several}; give blocks={count + 1}"
                f"{' or fewer' if count else ''}"
            )
        costs = self._costs(starts, balance)
        return [starts[i - 1] for i in partition(costs, blocks)[1:]]

    def _costs(self, starts: list[Moment], balance: Balance) -> list[int]:
        if balance == "memory":
            index = {id(p): i for i, p in enumerate(self.points)}
            readings = [0, *(self.saved[index[id(p)]] for p in starts), self.saved[-1]]
        else:
            readings = [0, *(p.flops for p in starts), self.found.flops]
        return [after - before for before, after in pairwise(readings)]

    def _busy(self, points: list[Moment]) -> list[Moment]:
        """Where a layer begins that costs something and has parameters; what costs nothing
        (normalisation, activation, pooling) stays with the layer before it.

        Where such pieces make a vector of feature maps or tokens (flatten, the class token), that
        goes with the layer that reads the vector: heads before it still see the maps.
        """
        flops = [0, *(p.flops for p in points), self.found.flops]
        times = [-1.0, *(float(p.time) for p in points), math.inf]
        pieces = [
            b > a and self.graph.parameters_used(s, e)
            for (a, b), (s, e) in zip(pairwise(flops), pairwise(times), strict=True)
        ]
        busy = [i for i, works in enumerate(pieces) if works][1:]
        starts = []
        before = 0
        for i in busy:
            idle = [points[j - 1] for j in range(i - 1, before, -1)]
            starts.append(self._with_flatten(points[i - 1], idle))
            before = i
        return starts

    def _with_flatten(self, point: Moment, idle: Sequence[Moment]) -> Moment:
        """Where what makes the vector at `point` begins, the nearest of `idle` first."""
        maps = next((p for p in idle if not _is_vector(p)), None)
        return point if maps is None or not _flattens(maps, point) else maps

    def named(self, at: Sequence[str]) -> list[Moment]:
        """Where the blocks begin that start with the modules `at`.

        Raises:
            InputError: no such module; not exactly one tensor crosses there.
        """
        known = {name: module for name, module in self.model.named_modules() if name}
        begins: dict[Moment, str] = {}
        for name in at:
            asked = f"cut(at=[..., {name!r}])" if len(at) > 1 else f"cut(at=[{name!r}])"
            if name not in known:
                raise InputError(
                    f"{asked}: the model has no module {name!r}; {choices(name, known)}"
                )
            first = self._first_call(known[name])
            if first is None:
                raise InputError(
                    f"{asked}: the model does not call {name!r} in eval mode; name a module that "
                    "it calls"
                )
            point = self._point_of(first, name, asked)
            if point is None:
                continue  # the first block begins there anyway
            if begins.setdefault(point, name) != name or list(at).count(name) > 1:
                raise InputError(
                    f"{asked}: {begins[point]!r} and {name!r} begin at the same place; name one of "
                    "them"
                )
        return sorted(begins, key=lambda point: point.order)

    def _first_call(self, module: nn.Module) -> Call | None:
        inside = set(module.modules())
        return next((c for c in self.found.calls if c.module in inside), None)

    def _point_of(self, first: Call, name: str, asked: str) -> Moment | None:
        if not self.graph.parameters_used(-1, first.starts):
            return None
        crossing = self.graph.the_one_alive(first.starts)
        point = next((p for p in self.points if p.output == crossing), None)
        before = [p for p in self.points if p.order <= first.begins and p is not point]
        if point is None and before and self._nothing_between(before[-1], first):
            point = before[-1]
        elif point is not None and before and _flattens(before[-1], point):
            point = before[-1] if self._nothing_between(before[-1], first) else point
        if point is None:
            alive = self.graph.alive(first.starts)
            if len(alive) > 1:
                origins = ", ".join(self._origin(output) for output in alive)
                what = (
                    f"{len(alive)} tensors cross before {name!r} (from {origins}); exactly one may"
                )
            else:
                what = f"no module is called with what crosses before {name!r}, or returns it"
            raise InputError(f"{asked}: {what}: {self._nearest(first)}")
        if self.axis(point) is None:
            raise InputError(
                f"{asked}: a tensor of shape {point.shape} crosses before {name!r}, of which no "
                f"axis is the batch of {self.rows}: {self._nearest(first)}"
            )
        if changed(point):
            raise InputError(
                f"{asked}: block {name!r} changes its input in place, which is the output of the "
                "block before it; give the module inplace=False, or cut elsewhere"
            )
        return point

    def _nothing_between(self, point: Moment, first: Call) -> bool:
        """Whether nothing between a point and a call has parameters, or is a module."""
        return not self.graph.parameters_used(point.time, first.starts) and not any(
            point.order < c.begins < first.begins and c.ends < first.begins
            for c in self.found.calls
        )

    def _nearest(self, call: Call) -> str:
        names = {module: name for name, module in self.model.named_modules()}
        good = [p for p in self.points if p.entry and p.n == 0 and not changed(p)]
        starts = [p for p in good if self.axis(p) is not None]
        before = [names[p.module] for p in starts if p.order < call.begins][-1:]
        after = [names[p.module] for p in starts if p.order > call.begins][:1]
        found = " or ".join(map(repr, before + after))
        return f"cut at {found}" if found else "the model is one block"

    def _origin(self, output: Output) -> str:
        names = {module: name for name, module in self.model.named_modules()}
        found = [m for m in self.found.moments if m.output == output and not m.entry]
        return repr(names[found[0].module]) if found else f"{output[0].name()}"

    def _what_crosses(self) -> str:
        middle = [c.starts for c in self.found.calls][len(self.found.calls) // 2 :][:1]
        alive = self.graph.alive(middle[0]) if middle else []
        if len(alive) < 2:
            return "no module is called with the one tensor that crosses"
        return (
            f"{len(alive)} tensors cross in the middle: {', '.join(map(self._origin, alive[:4]))}"
        )

    def axis(self, point: Moment) -> int | None:
        """Which axis of a tensor is the batch; None where none is. Where two may be, a run with one
        sample more tells."""
        found = [i for i in (0, 1)[: len(point.shape) - 1] if point.shape[i] == self.rows]
        if len(found) > 1 and len(point.shape) == 3:
            if self._more is None:
                self._more = self.more()
            longer = self._more.get((point.module, point.n, point.entry, point.path), point.shape)
            found = [i for i in found if longer[i] == self.rows + 1] or found
        return found[0] if found and (found[0] == 0 or len(point.shape) == 3) else None


def changed(point: Moment) -> bool:
    """Whether a tensor is changed in place after it has crossed."""
    return point.changes or point.tensor._version != point.version


def _is_vector(point: Moment) -> bool:
    return len(point.shape) == 2


def _flattens(maps: Moment, point: Moment) -> bool:
    """Whether what lies between is lost to a head at `point`: a vector made of maps or tokens. One
    position of feature maps, (B, C, 1, 1), tells no more than the vector it becomes."""
    if _is_vector(maps) or not _is_vector(point):
        return False
    node = point.output[0]
    before = getattr(node, "_saved_self_sym_sizes", None)
    one_position = before is not None and len(before) > 2 and all(n == 1 for n in before[2:])
    return not one_position or node.next_functions[0] == maps.output


def outermost(calls: Sequence[Call], begins: float, ends: float) -> list[Call]:
    """The outermost calls that begin and end between two places."""
    found: list[Call] = []
    for call in calls:
        if (
            begins <= call.begins
            and call.ends < ends
            and (not found or call.begins > found[-1].ends)
        ):
            found.append(call)
    return found


def as_chain(
    calls: Sequence[Call], given: Tensor, gave: Tensor, came: Mapping[int, Tensor]
) -> list[nn.Module] | None:
    """The modules of `calls` where each is called with what the one before returned, and nothing
    else happens between `given` and `gave`.

    Args:
        calls: the outermost ones of a block.
        given: what the block began with.
        gave: what it ended with.
        came: where the run was cut: the tensor that came, under the identity of the one that went
            on.
    """
    h = given
    for call in calls:
        if call.given is None or came.get(id(call.given), call.given) is not h or call.gave is None:
            return None
        h = call.gave
    return [call.module for call in calls] if calls and h is gave else None
