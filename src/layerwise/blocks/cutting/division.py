"""Makes the chain from the chosen cut points: finds the modules and parameters of each block."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from layerwise.blocks.boundary import Boundary
from layerwise.blocks.cutting.points import Points
from layerwise.blocks.cutting.recording import Call, Crossing, Moment, Recording
from layerwise.blocks.cutting.trial import Trial
from layerwise.blocks.stretch import Place
from layerwise.blocks.stretches import Stretches
from layerwise.inputs import Inputs, Take, scores


def divided(known: Points, starts: Sequence[Moment], trial: Trial, output: Take) -> Stretches:
    """The network as a chain of blocks.

    Args:
        known: the network and its cut points.
        starts: the cut points at which each block but the first begins, in order.
        trial: the run in train mode.
        output: which part of the network's output are the class scores.
    """
    model, x, recording, training = known.model, known.x, known.recording, trial.recording
    result = scores(recording.result, output)
    division = _Division(
        recording, [p.place for p in starts], [p.tensor for p in starts], x, result
    )
    crossings = [training.crossings.get(p.where) for p in starts]
    in_training = _Division(
        training,
        [_place(c, p) for c, p in zip(crossings, starts, strict=True)],
        [None if c is None else c.came for c in crossings],
        x,
        scores(training.result, output),
    )
    # A block is a chain only if it is the same chain in both modes.
    chains = [division.chain(k) for k in range(len(starts) + 1)]
    chains = [c if c == in_training.chain(k) else None for k, c in enumerate(chains)]
    names = {module: name for name, module in model.named_modules()}
    titles = [
        names[calls[0].module] if calls else f"{type(model).__name__}.{k}"
        for k, calls in enumerate(division.outermost_calls)
    ]
    axes = [known.axis(p) or 0 for p in starts]
    shapes = [
        tuple(n for i, n in enumerate(p.shape) if i != axis)
        for p, axis in zip(starts, axes, strict=True)
    ]
    return Stretches(
        model,
        [
            Boundary(k, *p.where, axis, p.event, p.ends_checkpoint)
            for k, (p, axis) in enumerate(zip(starts, axes, strict=True), 1)
        ],
        example=x,
        names=titles if starts else [type(model).__name__],
        shapes=[*shapes, tuple(result.shape[1:])],
        take=output,
        calls=recording.calls,
        owners=_owners(known, starts, division, in_training, crossings),
        tops=division.modules_within_blocks(),
        chains=chains,
        tables=[known.graph.tables_at(p.time) for p in starts],
        shared=_shared(known, starts),
    )


class _Division:
    """One run of the network, divided into blocks.

    Args:
        recording: the run.
        places: where each block but the first begins (see `Moment.place`), in order.
        tensors: the tensor that came to each of these places, None if the run did not come there.
        x: the network's inputs.
        result: the network's class scores.

    Attributes:
        outermost_calls: for each block, the outermost calls that lie in it as a whole, in order.
    """

    def __init__(
        self,
        recording: Recording,
        places: Sequence[float],
        tensors: Sequence[Tensor | None],
        x: Inputs,
        result: Tensor,
    ):
        self._calls, self._places = recording.calls, [-1.0, *places, math.inf]
        self._ends = [x if isinstance(x, Tensor) else None, *tensors, result]
        # Where the run was cut: the tensor that came, by the identity of the one that went on.
        self._came = {id(c.went_on): c.came for c in recording.crossings.values()}
        self.outermost_calls = [
            _outermost(recording.calls, begins, ends) for begins, ends in pairwise(self._places)
        ]

    def blocks_of_modules(self) -> dict[nn.Module, set[int]]:
        """The blocks in which each module's calls lie, or which they span."""
        found: dict[nn.Module, set[int]] = defaultdict(set)
        for c in self._calls:
            found[c.module] |= set(range(self._block_at(c.begins), self._block_at(c.ends) + 1))
        return found

    def modules_within_blocks(self) -> list[list[nn.Module]]:
        """For each block, the outermost modules all of whose calls lie in it."""
        blocks_of = self.blocks_of_modules()
        return [
            list(dict.fromkeys(c.module for c in calls if blocks_of[c.module] == {k}))
            for k, calls in enumerate(self.outermost_calls)
        ]

    def chain(self, k: int) -> list[nn.Module] | None:
        """Block k as modules called one after the other; None if it is more than that.

        Each module must be called with exactly what the one before it returned, the first one with
        the block's input, and the last one must return the block's output.
        """
        h, end = self._ends[k], self._ends[k + 1]
        calls = self.outermost_calls[k]
        if h is None or end is None or not calls:
            return None
        for c in calls:
            if c.given is None or c.gave is None or self._came.get(id(c.given), c.given) is not h:
                return None
            h = c.gave
        return [c.module for c in calls] if h is end else None

    def _block_at(self, event: int) -> int:
        return bisect.bisect_right(self._places, event) - 1


def _outermost(calls: Sequence[Call], begins: float, ends: float) -> list[Call]:
    """The outermost calls that begin and end between two places."""
    found: list[Call] = []
    for c in calls:
        if begins <= c.begins and c.ends < ends and (not found or c.begins > found[-1].ends):
            found.append(c)
    return found


def _place(crossing: Crossing | None, point: Moment) -> float:
    """Where a cut point lies in the run in train mode; infinity if the run did not come there."""
    if crossing is None:
        return math.inf
    return crossing.event - 0.5 if point.entry else crossing.event + 0.5


def _shared(known: Points, starts: Sequence[Moment]) -> dict[str, list[int]]:
    """The parameters that several blocks use: by name, the numbers of these blocks."""
    times = [p.time for p in starts]
    found = {}
    for name, parameter in known.model.named_parameters():
        uses = known.graph.uses.get(parameter, ())
        blocks = sorted({bisect.bisect_right(times, use) for use in uses})
        if len(blocks) > 1:
            found[name] = blocks
    return found


def _owners(
    known: Points,
    starts: Sequence[Moment],
    division: _Division,
    in_training: _Division,
    crossings: Sequence[Crossing | None],
) -> dict[Place, int]:
    """The number of the block that each parameter and buffer belongs to.

    It is the last block that uses the tensor. A tensor that no block uses belongs to the block of
    its module, or of the module around that, or to the last block.
    """
    times = [p.time for p in starts]
    of_module = _blocks_of_modules(known.model, len(starts), division, in_training)
    owners: dict[Place, int] = {}
    for module in known.model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                uses = known.graph.uses.get(parameter)
                owners[module, key] = (
                    bisect.bisect_right(times, uses[-1]) if uses else of_module[module]
                )
        for key, buffer in module._buffers.items():
            if buffer is not None:
                owners[module, key] = of_module[module]
    # A buffer of a module that spans several blocks belongs to the block that changes it.
    versions = [{}, *(c.buffers for c in crossings if c is not None)]
    for k, (before, after) in enumerate(pairwise(versions)):
        for place, version in after.items():
            if place in before and before[place] != version:
                owners[place] = k
    return owners


def _blocks_of_modules(
    model: nn.Module, last: int, division: _Division, in_training: _Division
) -> Mapping[nn.Module, int]:
    """The last block that each module is called in; if it is not called, that of its parent."""
    called, called_in_training = division.blocks_of_modules(), in_training.blocks_of_modules()
    found: dict[nn.Module, int] = {}
    by_name = {"": last}
    for name, module in model.named_modules():
        blocks = called.get(module) or called_in_training.get(module)
        by_name[name] = max(blocks) if blocks else by_name[name.rpartition(".")[0]]
        found[module] = by_name[name]
    return found
