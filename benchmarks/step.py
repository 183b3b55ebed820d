"""Measure a training step of backpropagation, checkpointing and decoupled greedy learning.

python benchmarks/step.py resnet110 --blocks 16
python benchmarks/step.py vgg8b --blocks all --head Conv --reduce 4
python benchmarks/step.py --table benchmarks/results/step-*.json
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import fields
from pathlib import Path

import torch
from rich.console import Console

from layerwise import heads, models, rules
from layerwise.bench import compare_steps, markdown

# name: network, image shape, classes, batch
NETWORKS = {
    "resnet110": (models.resnet110, (3, 32, 32), 10, 128),
    "resnet50": (functools.partial(models.torchvision, name="resnet50"), (3, 112, 112), 1000, 16),
    "vit12": (functools.partial(models.vit, layers=12, width=512, heads=8), (3, 32, 64), 10, 16),
    "vgg8b": (models.vgg8b, (3, 32, 32), 10, 128),
}
RESULTS = Path(__file__).parent / "results"


def count(text: str) -> int | str:
    return text if text == "all" else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("network", nargs="?", choices=NETWORKS)
    parser.add_argument("--table", nargs="+", metavar="FILE", help="print results as Markdown")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--blocks", type=count, default="all")
    parser.add_argument("--segments", type=count)
    parser.add_argument("--balance", default="memory", choices=("memory", "flops"))
    parser.add_argument("--head", default="Linear", choices=heads.__all__)
    for option in ("pool", "reduce", "width"):
        parser.add_argument(f"--{option}", type=int, help="of the head")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--global-step", action="store_true")
    parser.add_argument("--step-in-backward", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--name", help="of the result file, instead of one made from the options")
    args = parser.parse_args()
    if args.table:
        print(markdown(args.table))
        return
    make, shape, classes, batch = NETWORKS[args.network]
    batch = args.batch or batch
    recipe = getattr(heads, args.head)
    own = {field.name for field in fields(recipe)} & {"pool", "reduce", "width"}
    head = recipe(**{name: value for name in own if (value := getattr(args, name)) is not None})
    torch.manual_seed(0)
    x, y = torch.randn(batch, *shape), torch.randint(classes, (batch,))
    table = compare_steps(
        make(shape, classes),
        functools.partial(rules.DGL, head=head),
        x,
        y,
        blocks=args.blocks,
        segments=args.segments,
        balance=args.balance,
        rounds=args.rounds,
        global_step=args.global_step,
        step_in_backward=args.step_in_backward,
        channels_last=args.channels_last,
        title=args.network,
    )
    Console().print(table)
    name = args.name or f"{args.network}-{args.blocks}"
    table.save(RESULTS / f"step-{name}.json")


if __name__ == "__main__":
    main()
