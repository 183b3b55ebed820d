"""DGL's asynchronous mode: accuracy by the size of the replay buffer and by how slow one stage is.

    python benchmarks/asynchronous.py --data NAME [--called NAME] [--seeds 0 1 2]

writes `results/asynchronous.json` and `docs/pictures/asynchronous.png`: in small, the figures of
Belilovsky et al. 2020 (arXiv:1901.08164, section on asynchronous DGL with replay buffers). BasicCNN
with 32 channels in three stages of one block each; DGL with MLP heads. A step of the slow stage
takes S times as long as one of the others, and every stage keeps the M newest batches.

One process plays all stages by a clock: a stage takes its batches by the library's own `Upstream`,
and hands its outputs to its `Downstream`, as with `--stages 3 --replay M`. Only the link between
them is a queue. As there, all stages make the same number of steps and wait for each other at the
end of an epoch. The result depends on the seed alone. The authors draw the stage that steps next at
random, and slow a stage by drawing it less often, so it makes fewer steps.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from layerwise import data, models, rules
from layerwise.blocks import Blocks
from layerwise.data import Augment, Loader
from layerwise.heads import MLP
from layerwise.objectives.batch import Batch
from layerwise.report.curves import COLOURS
from layerwise.rules.base import LocalRule
from layerwise.runs.provenance import provenance
from layerwise.runtime.link import MORE
from layerwise.runtime.neighbours import Downstream, Upstream
from layerwise.trainer.optim import OneCycle

ROOT = Path(__file__).parents[1]
STAGES, LR, BATCH, ON_THE_WAY = 3, 0.05, 64, 4
# (slow stage, how slow it is, size of the buffer)
CASES = [
    (0, 1.0, 16),
    *((0, 4.0, size) for size in (1, 4, 16, 64)),
    *((0, slow, 16) for slow in (2.0, 8.0)),
    *((2, 4.0, size) for size in (1, 4, 16, 64)),
    *((2, slow, 16) for slow in (2.0, 8.0)),
]


class Link:
    """A link within one process: a queue with room for what a link between processes holds, two
    messages on either side. It stands for both `Sender` and `Receiver`.

    Attributes:
        drained: whether the receiver has ended its pass, and takes every message at once.
    """

    def __init__(self) -> None:
        self._messages: deque[tuple[tuple[Tensor, ...], int]] = deque()
        self.drained = False

    def offer(self, *tensors: Tensor, mark: int = MORE) -> bool:
        if len(self._messages) >= ON_THE_WAY and not self.drained:
            return False
        self._messages.append((tensors, mark))
        return True

    def send(self, *tensors: Tensor, mark: int = MORE) -> None:
        """A mark at the end of a pass, which is never left out."""
        self._messages.append((tensors, mark))

    def ready(self) -> bool:
        return bool(self._messages)

    def receive(self) -> tuple[list[Tensor], int]:
        tensors, mark = self._messages.popleft()
        return list(tensors), mark


@dataclass(eq=False)
class Stage:
    """A block with its own optimizer.

    Attributes:
        before, after: where its batches come from, and where its outputs go.
        steps: steps in this epoch.
        output: of the step that is under way.
        seen: the different batches that it has used.
    """

    before: Upstream
    after: Downstream | None
    optimizer: torch.optim.Optimizer
    steps: int = 0
    output: list[Tensor] | None = None
    begun: bool = False
    seen: set[int] = field(default_factory=set)


def train(
    rule: LocalRule, loader: Loader, epochs: int, durations: list[float], replay: int
) -> list[int]:
    """Train every block as a stage of its own, by a clock.

    Args:
        rule: on hand-made blocks, which run in any order.
        loader: the batches of the first stage.
        durations: of a step of each stage.
        replay: number of batches that a stage keeps.

    Returns:
        How many different batches each stage trained on.
    """
    last = len(rule.blocks) - 1
    links = [Link() for _ in range(last)]
    stages = [
        Stage(
            Upstream(links[k - 1] if k else None, None, replay),  # type: ignore[arg-type]
            Downstream(links[k], None, rule, k) if k < last else None,  # type: ignore[arg-type]
            torch.optim.SGD(rule.parameters_of(k), LR, momentum=0.9),
        )
        for k in range(last + 1)
    ]
    per_epoch = len(loader)
    factor = OneCycle().factor(epochs * per_epoch, per_epoch)
    for epoch in range(epochs):
        batches = enumerate(loader.epoch(epoch), epoch * per_epoch)
        for stage in stages:
            stage.steps = 0
        for link in links:
            link.drained = False
        # When a stage can begin its next step. At equal times, earlier stages come first.
        clock = [(0.0, k) for k, stage in enumerate(stages) if k == 0 or stage.begun]
        while clock:
            now, k = heapq.heappop(clock)
            stage = stages[k]
            if stage.output is not None and stage.after is not None:  # its last step has ended
                stage.after.give(*stage.output, stopping=False, droppable=True)
                if not stages[k + 1].begun:
                    stages[k + 1].begun = True
                    heapq.heappush(clock, (now, k + 1))
            stage.output = None
            if stage.steps == per_epoch:
                if k:
                    links[k - 1].drained = True
                continue
            stage.before.begin_step()
            if k == 0:
                number, (x, y) = next(batches)
                of_batch = torch.tensor(number)
            else:
                x, y, of_batch = stage.before.take_replayed()
            stage.seen.add(int(of_batch))
            rate = LR * factor(epoch * per_epoch + stage.steps)
            stage.output = [_step(rule, k, x, y, stage.optimizer, rate), y, of_batch]
            stage.steps += 1
            heapq.heappush(clock, (now + durations[k], k))
        for stage in stages:  # all wait for each other
            if stage.before.finish_pass() and stage.after is not None:
                stage.after.end_pass(stopping=False)
    return [len(stage.seen) for stage in stages]


def _step(
    rule: LocalRule, k: int, h: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, lr: float
) -> Tensor:
    batch = Batch(h, y)
    optimizer.zero_grad()
    with rule.blocks.passes(h) as batch.passes:
        out = rule.local_step(k, h, batch).out
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return out


def network(shape: tuple[int, ...], classes: int, channels: int) -> LocalRule:
    """DGL on BasicCNN with every convolution in a block of its own."""
    one, two, three, classifier = models.basic_cnn(shape, classes, channels)
    parts = [one, two, nn.Sequential(three, classifier)]
    rule = rules.DGL(Blocks(parts, example=torch.zeros(2, *shape)), head=MLP(width=256))
    return rule.to(memory_format=torch.channels_last)  # type: ignore[return-value]


def measure(
    splits: data.Splits, given: argparse.Namespace, seed: int, slow: int, factor: float, replay: int
) -> dict[str, Any]:
    """Train one network; its test accuracy, and how many different batches each stage used."""
    torch.manual_seed(seed)
    rule = network(splits.shape, splits.num_classes, 32)
    augment = Augment(flip=True, crop=4)
    loader = Loader(splits.train, BATCH, augment=augment, train=True, seed=seed, channels_last=True)
    durations = [factor if k == slow else 1.0 for k in range(STAGES)]
    used = train(rule, loader, given.epochs, durations, replay)
    rule.eval()
    right = 0
    with torch.no_grad():
        for x, y in Loader(splits.test, 500, augment=Augment(), train=False, channels_last=True):
            right += int((rule(x).argmax(1) == y).sum())
    return {"seed": seed, "test_accuracy": right / len(splits.test), "used": used}


def draw(found: dict[str, Any]) -> Figure:
    """Accuracy over the size of the buffer, and over the slowdown."""
    figure = Figure(figsize=(9.5, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = {0: "the first stage is slow", 2: "the last stage is slow"}
    panels = (
        (left, "replay", lambda row: row["slowdown"] == 4),
        (right, "slowdown", lambda row: row["replay"] == 16),
    )
    for axes, key, shown in panels:
        for colour, (slow, name) in zip(COLOURS, names.items(), strict=False):
            rows = [
                row
                for row in found["rows"]
                if shown(row) and (row["slow"] == slow or row["slowdown"] == 1)
            ]
            points: dict[float, list[float]] = {}
            for row in rows:
                points[row[key]] = [100 * run["test_accuracy"] for run in row["runs"]]
            at = sorted(points)
            middle = [sum(points[p]) / len(points[p]) for p in at]
            axes.plot(at, middle, marker="o", color=colour, label=name)
            for p in at:
                axes.plot([p] * len(points[p]), points[p], ".", color=colour, alpha=0.4)
        axes.set_xscale("log", base=2)
        ticks = sorted({row[key] for row in found["rows"] if shown(row)})
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.grid(alpha=0.25)
    (equal,) = (row for row in found["rows"] if row["slowdown"] == 1)
    level = sum(100 * run["test_accuracy"] for run in equal["runs"]) / len(equal["runs"])
    left.axhline(level, color="black", linewidth=0.8, linestyle=":", label="equally fast stages")
    left.set_ylabel("test accuracy, %")
    left.set_xlabel("batches that a stage keeps, M (slow stage: 4 times)")
    right.set_xlabel("slowdown of one stage, S (M = 16)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--called", help="name of the data in tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    splits = data.load(given.data)
    few = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
    splits = replace(splits, train=splits.train.subset(few[: given.images]))
    rows: list[dict[str, Any]] = []
    for slow, factor, replay in dict.fromkeys(CASES):
        runs = [measure(splits, given, seed, slow, factor, replay) for seed in given.seeds]
        rows.append({"slow": slow, "slowdown": factor, "replay": replay, "runs": runs})
        print(json.dumps(rows[-1]), flush=True)
    content = {
        "benchmark": "asynchronous",
        "data": given.called or splits.name,
        "images": given.images,
        "epochs": given.epochs,
        "steps": given.epochs * (given.images // BATCH),
        **provenance(),
        "rows": rows,
    }
    out = ROOT / "benchmarks" / "results" / "asynchronous.json"
    out.write_text(json.dumps(content, indent=1) + "\n")
    picture = ROOT / "docs" / "pictures" / "asynchronous.png"
    picture.parent.mkdir(exist_ok=True)
    draw(content).savefig(picture, dpi=110)
    print(out, picture)


if __name__ == "__main__":
    main()
