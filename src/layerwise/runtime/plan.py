"""Which blocks make a stage: as even in time as they can be."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from layerwise.batch import Batch
from layerwise.blocks.partition import partition
from layerwise.blocks.unchanged import unchanged
from layerwise.errors import InputError
from layerwise.rule import ForwardRule


def block_seconds(rule: ForwardRule, x: Tensor, y: Tensor, rounds: int = 3) -> list[float]:
    """How long each block's part of a step takes, its head and objective with it, in seconds.

    The median of some rounds after one that warms up. The rule is left unchanged.

    Args:
        rule: on its device.
        x: a batch, (B, ...).
        y: its labels, (B,) or (B, T).
        rounds: how many to measure.
    """
    count = len(rule.blocks)
    seconds: list[list[float]] = [[] for _ in range(count)]
    gradients = [(p, p.grad) for p in rule.parameters()]
    with unchanged(rule):
        rule.train()
        for _ in range(1 + rounds):
            batch = Batch(x, y)
            h = rule.enter(batch)
            for i in range(count):
                start = _now(x.device)
                before, h = h, rule.local_backward(i, h, batch)
                seconds[i].append(_now(x.device) - start)
                if i:
                    rule.learn(i - 1, before, batch)
                    seconds[i - 1][-1] += _now(x.device) - start - seconds[i][-1]
                for p in rule.parameters_of(i):
                    p.grad = None
    for p, grad in gradients:
        p.grad = grad
    return [statistics.median(of_block[1:]) for of_block in seconds]


def stage_starts(seconds: list[float], stages: int) -> list[int]:
    """Number of each stage's first block, so that the slowest stage is as fast as it can be.

    Raises:
        InputError: more stages than blocks, or fewer than one.
    """
    if not 1 <= stages <= len(seconds):
        raise InputError(
            f"--stages {stages}: the network is cut into {len(seconds)} blocks; give 1 to "
            f"{len(seconds)} stages, or cut it into more blocks"
        )
    return partition([max(1, round(s * 1e9)) for s in seconds], stages)


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
