"""A trial in train mode: the network runs cut at all candidates, to see which of them hold.

The first recording shows one path, in eval mode. In train mode another tensor may cross at the same
place (auxiliary classifiers, for instance). So the network runs once more, and at every candidate
the tensor continues without its graph; a graph that still reaches across a candidate shows that
something else has crossed.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from torch import Tensor, nn

from layerwise.blocks.cost import saved
from layerwise.blocks.cutting.graph import Graph
from layerwise.blocks.cutting.recording import Moment, Recording, Where, record
from layerwise.blocks.unchanged import seed
from layerwise.inputs import Inputs, Take, call, leading, scores


@dataclass(eq=False)
class Trial:
    """A run of the network that was cut at all candidates.

    Attributes:
        recording: the run.
        points: the candidates at which nothing but the one tensor crosses.
        saved_bytes: bytes kept for the backward pass before each of `points`, and at the end.
        reentrant: whether an activation checkpoint runs again in a backward pass of its own, which
            gives parameters no gradient if its input wants none.
    """

    recording: Recording
    points: list[Moment]
    saved_bytes: list[int]
    reentrant: bool


def try_cuts(model: nn.Module, x: Inputs, candidates: list[Moment], output: Take) -> Trial:
    """Run the network cut at all candidates.

    In train mode; in eval mode if the network cannot be trained on as small a batch as x.

    Args:
        model: the network.
        x: its inputs.
        candidates: as `cut_candidates` gives them. Those whose tensor is changed in place in train
            mode alone are marked (`Moment.changed_in_training`).
        output: which part of the network's output are the class scores.
    """
    cuts = {point.where: point for point in candidates}
    changed = {where for where, point in cuts.items() if point.changed_in_place}

    def run_in(training: bool, copied: Container[Where]) -> tuple[Recording, Tensor, int]:
        model.train(training)
        seed(leading(x).device)
        with saved(model) as kept:
            run = record(model, lambda: call(model, x), x, cuts, lambda: kept.bytes, copied)
            return run, scores(run.result, output), kept.bytes

    try:
        run, result, total = run_in(True, changed)
    except Exception:
        try:  # another tensor may be changed in place in train mode alone
            run, result, total = run_in(True, copied=cuts)
        except Exception:  # the batch may be too small to train on
            run, result, total = run_in(False, changed)
    model.eval()
    broken, reentrant = _broken(run, result)
    points, readings, reading = [], [], 0
    for where, point in cuts.items():
        if (crossing := run.crossings.get(where)) is not None:
            reading = crossing.reading
            is_copy = crossing.went_on is not crossing.leaf
            point.changed_in_training = is_copy and crossing.went_on._version > 0
        if where not in broken:
            points.append(point)
            readings.append(reading)
    return Trial(run, points, [*readings, total], reentrant)


def _broken(run: Recording, result: Tensor) -> tuple[set[Where], bool]:
    """The cuts of a run across which another tensor reaches.

    Returns:
        The cuts, and whether the run has an activation checkpoint with use_reentrant=True.
    """
    reached = sorted(run.crossings.items(), key=lambda item: item[1].time)
    crossing_of = {id(c.leaf): c for _, c in reached}
    broken: set[Where] = set()
    reentrant = False
    ends = [*(c.came for _, c in reached), result]
    for j, end in enumerate(ends):
        graph = Graph(end, run.data_nodes)
        reentrant |= any(n.name().startswith("CheckpointFunction") for n in graph.time_of)
        # The graph behind the j-th cut's tensor should begin at the cut before it.
        begins = min((graph.time_of[n] for n in graph.data), default=float("inf"))
        crossings = [crossing_of[id(v)].time for v in graph.uses if id(v) in crossing_of]
        earliest = min([begins, *crossings])
        broken |= {where for where, c in reached[:j] if c.time > earliest}
    return broken, reentrant
