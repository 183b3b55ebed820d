"""The cut points of a network, and which of them begin a block."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from layerwise.blocks.balance import Balance, partition
from layerwise.blocks.chain import repeated
from layerwise.blocks.cutting.graph import Graph, Output
from layerwise.blocks.cutting.recording import Call, Moment, Recording, Where, record
from layerwise.blocks.layout import Shape
from layerwise.errors import InputError, choices
from layerwise.inputs import Inputs, call, leading


def cut_candidates(recording: Recording, graph: Graph) -> list[Moment]:
    """The moments at which exactly one tensor crosses, one for each tensor, in order.

    Of several moments of a tensor, the entry of the outermost call is taken: a function that
    precedes the call (`F.relu`) then stays with the layer before it. Otherwise the exit of the
    outermost call, and otherwise an entry within a call that may run again.

    Args:
        recording: a run of the network.
        graph: the autograd graph behind the run's class scores.
    """
    points: list[Moment] = []
    for moment in recording.moments:
        if not graph.parameters_used(moment.time, float("inf")):
            break
        if moment.excluded or graph.only_alive(moment.time) != moment.output:
            continue
        if moment.entry and not graph.used_only_before(
            moment.output, moment.time, moment.call.end_time
        ):
            continue
        if not points or points[-1].output != moment.output:
            points.append(moment)
        elif _preferred(moment, points[-1]):
            points[-1] = moment
    return points


def _preferred(moment: Moment, before: Moment) -> bool:
    """Whether a later moment of the same tensor is the better place to cut."""
    if _rank(moment) != _rank(before):
        # A module that returns its input, such as dropout in eval mode.
        passed_on = before.entry and before.call.ends <= moment.event
        return _rank(moment) < _rank(before) or (passed_on and not moment.may_run_again)
    return not moment.entry or before.call.ends < moment.event


def _rank(moment: Moment) -> int:
    return 2 if moment.may_run_again else 0 if moment.entry else 1


@dataclass(eq=False)
class Points:
    """The cut points of a network.

    Attributes:
        model: the network.
        x: the inputs of its runs.
        recording: its run in eval mode.
        graph: the autograd graph behind the run's class scores.
        points: the moments at which one tensor crosses, in order.
        saved_bytes: bytes kept for the backward pass before each of `points`, and at the end.
    """

    model: nn.Module
    x: Inputs
    recording: Recording
    graph: Graph
    points: list[Moment]
    saved_bytes: Sequence[int]
    _shapes_with_one_more: dict[Where, Shape] | None = None

    @property
    def rows(self) -> int:
        """How many samples `x` has."""
        return len(leading(self.x))

    def balanced(self, blocks: int | str, balance: Balance) -> list[Moment]:
        """Where each block but the first begins, for blocks of about equal cost.

        Args:
            blocks: how many, or "all" for one per layer.
            balance: which cost, "flops" or "memory".

        Raises:
            InputError: there are fewer cut points.
        """
        points = [p for p in self.points if self.axis(p) is not None and not p.changed_in_place]
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
        """The cost of each piece between the given points, and before and after all of them."""
        if balance == "memory":
            index = {id(p): i for i, p in enumerate(self.points)}
            readings = [self.saved_bytes[index[id(p)]] for p in starts]
            readings = [0, *readings, self.saved_bytes[-1]]
        else:
            readings = [0, *(p.flops for p in starts), self.recording.flops]
        return [after - before for before, after in pairwise(readings)]

    def _busy(self, points: list[Moment]) -> list[Moment]:
        """The points at which a layer begins that costs FLOPs and has parameters.

        Pieces that cost nothing (normalisation, activation, pooling) stay with the layer before
        them. If such a piece turns feature maps or tokens into a vector (flatten, the class token),
        it goes with the layer that reads the vector, so that heads before it still see the maps.
        """
        flops = [0, *(p.flops for p in points), self.recording.flops]
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
        """Where the pieces begin that make the vector at `point`; the point itself if none does.

        Args:
            point: where a layer begins.
            idle: the points between the layer before and `point`, from the nearest on.
        """
        maps = next((p for p in idle if not _is_vector(p)), None)
        return point if maps is None or not _flattens(maps, point) else maps

    def named(self, at: Sequence[str]) -> list[Moment]:
        """Where the blocks begin whose first modules are named `at`.

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
        return sorted(begins, key=lambda point: point.event)

    def _first_call(self, module: nn.Module) -> Call | None:
        """The first call of a module; if it is never called itself, as a `ModuleList`, of a module
        inside it; None if there is none."""
        inside = set(module.modules())
        calls = [c for c in self.recording.calls if c.module in inside]
        # A module inside it may have been called before, elsewhere in the network.
        return next((c for c in calls if c.module is module), calls[0] if calls else None)

    def _point_of(self, first: Call, name: str, asked: str) -> Moment | None:
        """The point at which a named block begins; None if the first block begins there.

        Args:
            first: the first call in the block.
            name: the name.
            asked: the call of `cut`, for errors.
        """
        if not self.graph.parameters_used(-1, first.begin_time):
            return None
        point = self._crossing_at(first)
        if point is None:
            raise InputError(f"{asked}: {self._why_no_point(first, name)}: {self._nearest(first)}")
        if self.axis(point) is None:
            raise InputError(
                f"{asked}: a tensor of shape {point.shape} crosses before {name!r}, and no axis of "
                f"it is the batch of {self.rows}: {self._nearest(first)}"
            )
        if point.changed_in_place:
            raise InputError(
                f"{asked}: block {name!r} changes its input in place, which is the output of the "
                "block before it; give the module inplace=False, or cut elsewhere"
            )
        return point

    def _crossing_at(self, first: Call) -> Moment | None:
        """The point whose tensor crosses just before a call; None if there is none.

        The point before takes its place if it is as good: if no parameter is used and no module
        called between that point and the call, and heads can still read maps there (`_flattens`).
        """
        crossing = self.graph.only_alive(first.begin_time)
        point = next((p for p in self.points if p.output == crossing), None)
        before = [p for p in self.points if p.event <= first.begins and p is not point]
        if before and self._nothing_between(before[-1], first):
            return before[-1] if point is None or _flattens(before[-1], point) else point
        return point

    def _why_no_point(self, first: Call, name: str) -> str:
        """Why no block can begin with a call, for errors."""
        alive = self.graph.alive(first.begin_time)
        if len(alive) < 2:
            return f"no module takes or returns the tensor that crosses before {name!r}"
        origins = ", ".join(self._origin(output) for output in alive)
        return f"{len(alive)} tensors cross before {name!r} (from {origins}); exactly one may"

    def _nothing_between(self, point: Moment, first: Call) -> bool:
        """Whether no parameter is used, and no module called, between a point and a call."""
        return not self.graph.parameters_used(point.time, first.begin_time) and not any(
            point.event < c.begins < first.begins and c.ends < first.begins
            for c in self.recording.calls
        )

    def _nearest(self, call: Call) -> str:
        """Where to cut instead, for errors: the nearest names before and after a call."""
        names = {module: name for name, module in self.model.named_modules()}
        good = [p for p in self.points if p.entry and p.call.n == 0 and not p.changed_in_place]
        starts = [p for p in good if self.axis(p) is not None]
        before = [names[p.module] for p in starts if p.event < call.begins][-1:]
        after = [names[p.module] for p in starts if p.event > call.begins][:1]
        found = " or ".join(map(repr, before + after))
        return f"cut at {found}" if found else "the model is one block"

    def _origin(self, output: Output) -> str:
        """The module that returned a tensor, for errors; otherwise its autograd node."""
        names = {module: name for name, module in self.model.named_modules()}
        found = [m for m in self.recording.moments if m.output == output and not m.entry]
        return repr(names[found[0].module]) if found else f"{output[0].name()}"

    def _what_crosses(self) -> str:
        """Why there is no cut point, for errors."""
        calls = self.recording.calls
        alive = self.graph.alive(calls[len(calls) // 2].begin_time) if calls else []
        if len(alive) < 2:
            return "no module takes or returns the one tensor that crosses"
        return (
            f"{len(alive)} tensors cross in the middle: {', '.join(map(self._origin, alive[:4]))}"
        )

    def axis(self, point: Moment) -> int | None:
        """The batch axis of the tensor at a point; None if no axis has the batch's length.

        If two axes have it, a run with one sample more tells which one is the batch.
        """
        found = [i for i in (0, 1)[: len(point.shape) - 1] if point.shape[i] == self.rows]
        if len(found) > 1 and len(point.shape) == 3:
            longer = self._with_one_more().get(point.where, point.shape)
            found = [i for i in found if longer[i] == self.rows + 1] or found
        return found[0] if found and (found[0] == 0 or len(point.shape) == 3) else None

    def _with_one_more(self) -> dict[Where, Shape]:
        """The shapes at all moments of a run with one sample more; empty if that run fails."""
        if self._shapes_with_one_more is None:
            self._shapes_with_one_more = {}
            wider = repeated(self.x, self.rows + 1, leading(self.x).device)
            with contextlib.suppress(Exception):
                moments = record(self.model, lambda: call(self.model, wider), wider).moments
                self._shapes_with_one_more = {moment.where: moment.shape for moment in moments}
        return self._shapes_with_one_more


def _is_vector(point: Moment) -> bool:
    """Whether the tensor at a point is (B, D)."""
    return len(point.shape) == 2


def _flattens(maps: Moment, point: Moment) -> bool:
    """Whether between two points maps or tokens become a vector, which a head can no longer read.

    Feature maps of one position, (B, C, 1, 1), hold no more than the vector that they become.
    """
    if _is_vector(maps) or not _is_vector(point):
        return False
    node = point.output[0]
    before = getattr(node, "_saved_self_sym_sizes", None)
    one_position = before is not None and len(before) > 2 and all(n == 1 for n in before[2:])
    return not one_position or node.next_functions[0] == maps.output
