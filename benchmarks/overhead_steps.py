"""What a step costs besides its arithmetic; run by overhead.py, once for each version and round.

    python benchmarks/overhead_steps.py trainer       the trainer's epoch over a bare loop's
    python benchmarks/overhead_steps.py blocks        microseconds per block over a loop by hand

Both sides of a comparison take turns in one process, in CPU time, with the same blocks, batches and
optimizer. It prints JSON.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from layerwise import cut, heads, models, rules
from layerwise.data import Augment, Loader
from layerwise.data.images import Images
from layerwise.runs.run import Run
from layerwise.trainer import Settings, Trainer, fabric_for
from layerwise.trainer.optim import SGD, OneCycle

TURNS = 8


def trainer() -> dict[str, float]:
    """The trainer's epoch, divided by that of the same rule, loader and optimizer in a loop of four
    lines, for a small and a middling network."""
    small = models.basic_cnn((1, 8, 8), 10, channels=32)
    head = heads.MLP(width=64)
    return {
        "basic_cnn on 8x8, batch 64": _trainer(small, (1, 8, 8), 64, 20, head),
        "resnet20, batch 64": _trainer(models.resnet20(), (3, 32, 32), 64, 3, heads.Linear()),
    }


def _trainer(
    network: nn.Module, shape: tuple[int, ...], batch: int, batches: int, head: heads.Head
) -> float:
    rule = rules.DGL(cut(network, "all", example=torch.randn(2, *shape)), head=head)
    channels, *size = shape
    pixels = torch.randint(0, 256, (batch * batches, *size, channels), dtype=torch.uint8)
    images = Images(pixels, torch.randint(10, (len(pixels),)))
    loader = Loader(images, batch, augment=Augment(crop=1), train=True)
    with tempfile.TemporaryDirectory() as folder:
        made = Trainer(
            network=network,
            rule=rule,
            loaders={"train": loader},
            optimizer=SGD(),
            schedule=OneCycle(),
            settings=Settings(epochs=10**6, batch_size=batch, precision="32", channels_last=False),
            run=Run.create(Path(folder), "run", "run", {}),
            fabric=fabric_for("cpu"),
        )
        (optimizer,) = made.stepper.optimizers.values()
        epochs = itertools.count()

        def ours() -> None:
            made.position.batch = 0
            made._train_epoch()
            made.position.epoch += 1

        def bare() -> None:
            for x, y in loader.epoch(next(epochs)):
                optimizer.zero_grad()
                rule.backward(x, y)
                optimizer.step()

        ours_s, bare_s = _in_turns(ours, bare)
    return ours_s / bare_s


def blocks() -> dict[str, float]:
    """Microseconds that a block of DGL costs over a greedy loop by hand over the same modules: an
    MLP with eight hidden layers of 128, batches of 32."""
    network = models.mlp((3, 4, 4), 10, layers=8, width=128)
    x, y = torch.randn(32, 3, 4, 4), torch.randint(10, (32,))
    rule = rules.DGL(cut(network, "all", example=x), head=heads.Linear())
    parts = list(network)
    read = [rule.objectives[k].head for k in range(len(parts))]

    def ours() -> None:
        for _ in range(20):
            rule.backward(x, y)

    def by_hand() -> None:
        for _ in range(20):
            h = x
            for part, head in zip(parts, read, strict=True):
                h = part(h.detach())
                F.cross_entropy(head(h), y).backward()

    ours_s, hand_s = _in_turns(ours, by_hand)
    return {
        "microseconds per block over the loop": 1e6 * (ours_s - hand_s) / 20 / len(parts),
        "microseconds per block of the loop": 1e6 * hand_s / 20 / len(parts),
    }


def _in_turns(*sides: Callable[[], None]) -> list[float]:
    """The least CPU seconds of each side."""
    seconds: list[list[float]] = [[] for _ in sides]
    gc.disable()
    for turn in range(TURNS + 1):
        for side, so_far in zip(sides, seconds, strict=True):
            start = time.process_time()
            side()
            if turn:
                so_far.append(time.process_time() - start)
    return [min(of_side) for of_side in seconds]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(json.dumps({"trainer": trainer, "blocks": blocks}[sys.argv[1]]()))
