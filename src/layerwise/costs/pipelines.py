"""Schedules of pipelined backpropagation, simulated with measured times of stages and a link."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from layerwise.blocks.balance import partition

# torch's name, and how many stages a process has. GPipe: Huang et al. 2019 (arXiv:1811.06965);
# 1F1B: Narayanan et al. 2019 (arXiv:1806.03377); interleaved: 2021 (arXiv:2104.04473); ZBV: Qi et
# al. 2024 (arXiv:2405.15362); DualPipeV: half of DualPipe, DeepSeek-AI 2024 (arXiv:2412.19437).
SCHEDULES = {
    "GPipe": ("GPipe", 1),
    "1F1B": ("1F1B", 1),
    "interleaved 1F1B": ("Interleaved1F1B", 2),
    "ZBV zero bubble": ("ZBVZeroBubble", 2),
    "DualPipeV": ("DualPipeV", 2),
}
DELAYED = "delayed gradients"
BATCHES = 8  # simulated batches of delayed gradients, of which the second half is timed

Op = tuple[
    str, int, int
]  # forward F, backward B or its halves I (inputs) and W; stage; micro-batch
SHARES = {"F": 1 / 3, "B": 2 / 3, "I": 1 / 3, "W": 1 / 3}  # of the time of a stage


@dataclass(frozen=True)
class Pipelined:
    """A schedule's simulated speed.

    Attributes:
        seconds: of a batch, from the first process's start to the last one's end; of delayed
            gradients, which overlap batches, from batch to batch.
        idle: the share of this time in which a process waits, mean over processes.
        halved: whether there were fewer blocks than stages, so that the stages of a process are
            halves of its blocks. No network is cut so: the time is a lower bound.
    """

    seconds: float
    idle: float
    halved: bool = False


def simulate(
    orders: Sequence[Sequence[Op]],
    seconds: Sequence[float],
    sends: Sequence[float],
) -> dict[Op, float]:
    """The time at which each operation ends.

    A process begins its next operation when it has ended the one before and the operation's input
    is there: of a stage's forward F the output of the stage before, of its backward (B or I) its
    own forward and the gradient of the stage after, of W its own I. A link carries one message at a
    time in each direction. A third of a stage's time is its forward.

    Args:
        orders: the operations of each process, in order.
        seconds: of each stage, for one micro-batch.
        sends: seconds of a message from each stage to the next one, or back.

    Raises:
        ValueError: the orders wait for each other.
    """
    home = {stage: r for r, order in enumerate(orders) for _, stage, _ in order}
    ended: dict[Op, float] = {}
    arrived: dict[Op, float] = {}  # at the stage after (F) or before (B, I)
    free_at = [0.0] * len(orders)
    link: dict[tuple[int, int], float] = {}
    position = [0] * len(orders)
    last = len(seconds) - 1

    def ready(op: Op) -> float | None:
        kind, stage, m = op
        needs: list[float | None] = []
        if kind == "F" and stage:
            needs.append(arrived.get(("F", stage - 1, m)))
        if kind in "BI":
            needs.append(ended.get(("F", stage, m)))
            if stage < last:
                after = (("B", stage + 1, m), ("I", stage + 1, m))
                needs.append(next((arrived[o] for o in after if o in arrived), None))
        if kind == "W":
            needs.append(ended.get(("I", stage, m)))
        return None if None in needs else max((n for n in needs if n is not None), default=0.0)

    moved = True
    while moved:
        moved = False
        for r, order in enumerate(orders):
            while position[r] < len(order) and (at := ready(order[position[r]])) is not None:
                op = order[position[r]]
                kind, stage, _ = op
                free_at[r] = ended[op] = max(at, free_at[r]) + SHARES[kind] * seconds[stage]
                to = stage + 1 if kind == "F" else stage - 1
                if kind != "W" and 0 <= to <= last:
                    way = (stage, to)
                    wait_s = sends[min(stage, to)] if home[to] != r else 0.0
                    arrived[op] = link[way] = max(ended[op], link.get(way, 0.0)) + wait_s
                position[r] += 1
                moved = True
    if any(at < len(order) for at, order in zip(position, orders, strict=True)):
        raise ValueError("the operations wait for each other")
    return ended


def order_of(schedule: str, processes: int, microbatches: int) -> list[list[Op]]:
    """The operations of each process in a schedule; those of two stages a process are torch's.

    Raises:
        ValueError: the schedule needs another number of micro-batches.
    """
    name, per_process = SCHEDULES[schedule]
    if (
        per_process == 1
    ):  # the first process's forwards run ahead by all stages, the last one's by 1
        orders: list[list[Op]] = []
        for r in range(processes):
            ahead = microbatches if name == "GPipe" else min(microbatches, processes - r)
            orders.append([("F", r, m) for m in range(ahead)])
            for m in range(microbatches):
                orders[r].append(("B", r, m))
                if ahead + m < microbatches:
                    orders[r].append(("F", r, ahead + m))
        return orders
    from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

    actions = get_schedule_ops(name, processes, microbatches, per_process)
    written = [" ".join(map(str, of_process)) for of_process in actions]
    found = [re.findall(r"(\d+)([FBIW])(\d+)", text) for text in written]
    return [[(kind, int(stage), int(m)) for stage, kind, m in of_process] for of_process in found]


def order_of_delayed(processes: int, microbatches: int) -> list[list[Op]]:
    """The operations of stages with delayed gradients (`runtime/delayed.py`)."""
    orders: list[list[Op]] = []
    for r in range(processes):
        lag = processes - 1 - r
        orders.append([])
        for m in range(microbatches):
            orders[r].append(("F", r, m))
            if m >= lag:
                orders[r].append(("B", r, m - lag))
    return orders


def pipelined(
    schedule: str,
    block_seconds: Sequence[float],
    block_sends: Sequence[float],
    processes: int,
    microbatches: int,
) -> Pipelined:
    """The simulated speed of a schedule. Where a schedule runs a forward and a backward in one
    operation (DualPipeV), they do not overlap, as on one device.

    Args:
        schedule: a name in `SCHEDULES`, or `DELAYED`.
        block_seconds: of backpropagation through each block, for a whole batch.
        block_sends: seconds of sending each block's output for a whole batch.
        processes: number of processes. If a schedule has two stages for each and the network has
            too few blocks, the stages of one process are halves that send what the whole sends.
        microbatches: of a batch.

    Raises:
        ValueError: the schedule needs another number of micro-batches.
    """
    per_process = 1 if schedule == DELAYED else SCHEDULES[schedule][1]
    count = per_process * processes
    halved = count > len(block_seconds)
    starts = partition(
        [max(1, round(1e9 * s)) for s in block_seconds], processes if halved else count
    )
    ends = [*starts[1:], len(block_seconds)]
    seconds = [sum(block_seconds[a:b]) / microbatches for a, b in zip(starts, ends, strict=True)]
    sends = [block_sends[b - 1] / microbatches for b in ends]
    if halved:
        seconds = [s / per_process for s in seconds for _ in range(per_process)]
        sends = [s for s in sends for _ in range(per_process)]
    if schedule == DELAYED:
        ended = simulate(order_of_delayed(processes, BATCHES * microbatches), seconds, sends)
        half = BATCHES // 2 * microbatches
        done = [ended["F", processes - 1, m] for m in (half - 1, BATCHES * microbatches - 1)]
        whole = (done[1] - done[0]) / (BATCHES - BATCHES // 2)
    else:
        ended = simulate(order_of(schedule, processes, microbatches), seconds, sends)
        whole = max(ended.values())
    busy = sum(seconds) * microbatches / processes
    return Pipelined(whole, 1 - busy / whole, halved)


def seconds_to_send(bytes_: int, gigabits_per_s: float) -> float:
    """The time that a message takes; 0 over a link of infinite rate."""
    return 0.0 if math.isinf(gigabits_per_s) else 8 * bytes_ / (1e9 * gigabits_per_s)
