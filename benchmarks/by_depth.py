"""What the blocks of one network learn under different rules, by depth.

    python benchmarks/by_depth.py exits --data NAME            accuracy and cost of every exit
    python benchmarks/by_depth.py gradients --data NAME        angle to backpropagation's gradient
    python benchmarks/by_depth.py information --data NAME      on the image and on the label
    python benchmarks/by_depth.py random-labels                memorised random labels of digits
    python benchmarks/by_depth.py filters --data NAME          filters of the first layer

Each figure trains its runs by `layerwise train`, asks `layerwise evaluate` or `layerwise analyze`,
and writes `results/by-depth-FIGURE.json` and `docs/pictures/by-depth-FIGURE.png`. Figures share
runs; an interrupted run is continued, and a finished run is left alone. `--called` names the data
in tables.

`exits` is the choice of a sub-network of Lee et al. 2021 (Local Critic Training): the cheapest
exit whose validation accuracy is within one point of the best. `gradients`, `random-labels` and
`filters` are figures of Laskin et al. 2020 (arXiv:2012.03837). `information` is the measurement of
Wang et al. 2021 (InfoPro, arXiv:2101.10832).
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from runs import left_to_train

from layerwise.analysis.exits import cheapest
from layerwise.cli import main as layerwise
from layerwise.report.curves import COLOURS
from layerwise.runs.provenance import provenance
from layerwise.runs.run import Run

ROOT = Path(__file__).parents[1]
TRAINING = "--optimizer AdamW --schedule OneCycle --pictures 0 --precision 32 "
VGG = (
    f"{TRAINING}--optimizer.lr 0.003 --model vgg11c --model.width 0.25 --blocks all --data.size 16 "
    "--batch_size 128 --epochs 1 --channels_last true --alignment_every 50 "
)
VIEWS = (
    "--views 2 --augment.resized_crop true --augment.scale [0.2,1.0] --augment.flip true "
    "--augment.jitter [0.4,0.4,0.4,0.1] --augment.grey 0.2 "
)
BASIC = (
    f"{TRAINING}--optimizer.lr 0.003 --model basic_cnn --model.channels 32 "
    "--at [conv2,conv3,classifier] --batch_size 64 --epochs 1 --channels_last true "
)
RANDOM = (
    f"{TRAINING}--optimizer.lr 0.003 --data digits --data.random_labels 1 --model basic_cnn "
    "--model.channels 8 --model.hidden 32 --at [conv2,conv3,classifier] --batch_size 64 "
    "--epochs 60 "
)
MLP = "--rule.head MLP --rule.head.width 64"
CLASSIFY = "--rule.objectives Classify --rule.objectives.head MLP --rule.objectives.head.width 64"
INFOPRO = (
    "--rule Greedy --rule.objectives Reconstruct+Classify --rule.objectives.Reconstruct.weight "
    "[5,0.5] --rule.objectives.Reconstruct.distance bce --rule.objectives.Reconstruct.decoder "
    "Bilinear --rule.objectives.Reconstruct.decoder.channels 12 --rule.objectives.Classify.weight "
    "[0,1] --rule.objectives.Classify.head MLP --rule.objectives.Classify.head.width 64"
)
RULES = {
    "backprop": "--rule Backprop",
    "deep-supervision": f"--rule DeepSupervision {MLP}",
    "local-critic": f"--rule LocalCritic {MLP}",
    "local-critic-4": f"--rule LocalCritic {MLP} --blocks 4",
    "dgl": f"--rule DGL {MLP}",
    "overlap": f"--rule Overlap --rule.overlap 1 {CLASSIFY}",
    "infopro": INFOPRO,
    "simclr": "--rule Greedy --rule.objectives NTXent",
}


@dataclass(frozen=True)
class Plan:
    """What a figure needs.

    Attributes:
        network: options that all its runs share; runs with the same ones are shared by figures.
        rules: names in `RULES`.
        question: of `layerwise analyze`; None for `layerwise evaluate`.
        more: options of `layerwise analyze`.
    """

    network: str
    rules: tuple[str, ...]
    question: str | None
    more: str = ""


PLANS = {
    "exits": Plan(
        "vgg", ("deep-supervision", "local-critic", "local-critic-4", "dgl", "overlap"), None
    ),
    "gradients": Plan("vgg", ("dgl", "overlap", "local-critic"), "alignment"),
    "information": Plan(
        "vgg", ("backprop", "dgl", "infopro", "simclr"), "information", "--samples 1500"
    ),
    "random-labels": Plan("random", ("backprop", "overlap", "dgl"), "memorization"),
    "filters": Plan("basic", ("backprop", "overlap", "dgl"), "filters"),
}
NETWORKS = {"vgg": VGG, "basic": BASIC, "random": RANDOM}
AUGMENT = {
    "vgg": "--augment.flip true --augment.crop 2 ",
    "basic": "--augment.flip true --augment.crop 4 ",
    "random": "",
}


def options_of(network: str, rule: str) -> str:
    """Options of `layerwise train`, without seed and data."""
    augment = VIEWS if rule == "simclr" else AUGMENT[network]
    return f"{NETWORKS[network]}{augment}{RULES[rule]}"


def train(network: str, rule: str, seed: int, data: str | None, runs: Path) -> Run:
    """The run of a rule; trained unless it is finished."""
    path = runs / network / f"{rule}-{seed}"
    arguments = [*shlex.split(options_of(network, rule)), "--seed", str(seed)]
    arguments += [] if network == "random" else ["--data", str(data)]
    left = left_to_train(path, arguments)
    if left is not None and (code := layerwise(["train", *left])):
        raise SystemExit(code)
    return Run.open(str(path))


def exits_of(run: Run) -> dict[str, Any]:
    """Accuracy and cost of every exit, and the one that the validation split chooses."""
    measured = {}
    for split in ("validation", "test"):
        file = run.path / f"evaluation-{split}-last.json"
        if not file.exists():
            layerwise(["evaluate", str(run.path), "--split", split])
        measured[split] = json.loads(file.read_text())["exits"]
    chosen = cheapest(measured["validation"], 0.01)
    rows = [
        None if e is None else {"accuracy": e["accuracy"], "flops": e["flops"]}
        for e in measured["test"]
    ]
    return {"exits": rows, "chosen": chosen}


def draw_exits(rows: list[dict[str, Any]]) -> Figure:
    """Accuracy over the cost of each exit, a line per rule; a ring marks the chosen exit."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for colour, rule in zip(COLOURS, dict.fromkeys(row["rule"] for row in rows), strict=False):
        of_rule = [row for row in rows if row["rule"] == rule]
        for k, row in enumerate(of_rule):
            known = [e for e in row["exits"] if e is not None]
            x, y = [e["flops"] / 1e6 for e in known], [100 * e["accuracy"] for e in known]
            axes.plot(x, y, marker=".", color=colour, label=rule if not k else None, alpha=0.8)
            e = row["exits"][row["chosen"]]
            axes.plot(
                e["flops"] / 1e6, 100 * e["accuracy"], "o", color=colour, ms=11, fillstyle="none"
            )
    axes.set_xscale("log")
    axes.set_xlabel("MFLOPs of the network up to the exit, for one image")
    axes.set_ylabel("test accuracy of the exit, %")
    axes.grid(alpha=0.25, which="both")
    axes.legend()
    return figure


def analyzed(
    runs: Mapping[str, Run], question: str, more: str, picture: Path
) -> dict[str, list[dict[str, Any]]]:
    """Each run's rows of `layerwise analyze`; its picture is copied."""
    first, *_ = runs.values()
    there = {path.name for path in first.path.glob("analysis-*")}
    paths = [str(run.path) for run in runs.values()]
    if code := layerwise(["analyze", *paths, "--questions", question, *shlex.split(more)]):
        raise SystemExit(code)
    (folder,) = (path for path in first.path.glob("analysis-*") if path.name not in there)
    found = json.loads((folder / "analysis.json").read_text())
    name = "filters.png" if question == "filters" else "blocks.png"
    picture.parent.mkdir(exist_ok=True)
    shutil.copyfile(folder / name, picture)
    return {rule: of["blocks"] for rule, of in zip(runs, found["runs"], strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=PLANS)
    parser.add_argument("--data")
    parser.add_argument("--called", help="name of the data in tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("experiments/by-depth"))
    given = parser.parse_args()
    plan = PLANS[given.figure]
    picture = ROOT / "docs" / "pictures" / f"by-depth-{given.figure}.png"
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        runs = {r: train(plan.network, r, seed, given.data, given.runs) for r in plan.rules}
        if plan.question is None:
            rows += [{"rule": r, "seed": seed, **exits_of(run)} for r, run in runs.items()]
            continue
        # The picture is that of the last seed.
        of = analyzed(runs, plan.question, plan.more, picture)
        rows += [{"rule": r, "seed": seed, "blocks": blocks} for r, blocks in of.items()]
    if plan.question is None:
        picture.parent.mkdir(exist_ok=True)
        draw_exits(rows).savefig(picture, dpi=110)
    config = dict(next(iter(runs.values())).config)
    content = {
        "benchmark": "by_depth",
        "figure": given.figure,
        "data": given.called or config["data"]["name"],
        "options": NETWORKS[plan.network].strip(),
        "commands": {
            r: options_of(plan.network, r).removeprefix(NETWORKS[plan.network]) for r in plan.rules
        },
        **provenance(),
        "rows": rows,
    }
    out = ROOT / "benchmarks" / "results" / f"by-depth-{given.figure}.json"
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(out, picture)


if __name__ == "__main__":
    main()
