"""The claims of papers on learning with few labels, in small: `results/pipelines-PART.json`.

    python benchmarks/pipelines.py                  all parts, a quarter of an hour of one core
    python benchmarks/pipelines.py labels distill   only these parts; --widths 8: only this network

    labels       fine-tuning after SimCLR and from the start, over the share of labels, two widths
    distill      students of fine-tuned teachers
    choices      SimCLR's augmentations and the depth of its projector
    objectives   end to end and block by block, contrastive and predictive

Every run is a recipe with options that its row names. The first two parts train on digits, scaled
to 16x16; the others on CIFAR-10, of which `cifar` takes 2,000 training and 2,000 test images. The
variable CIFAR10 names the set as `--data` does. Finished runs in `--runs` are not trained again;
interrupted ones continue.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from runs import left_to_train

from layerwise import data
from layerwise.cli import main as layerwise
from layerwise.data.splits import Parts
from layerwise.runs.provenance import provenance
from layerwise.runs.run import Run

RESULTS = Path(__file__).parent / "results"
SEEDS = [0, 1]
NETWORK = "--model.kernel_size 3 --model.hidden 64 --pictures 0 --precision 32 --batch_size 128"
PRETRAIN, TUNE = "--optimizer.lr 0.003", "--optimizer.lr 0.005"
GREY = (
    "--data digits --data.size 16 --augment.scale [0.4,1.0] --augment.flip false "
    "--augment.jitter [0.4,0.4,0,0] --augment.grey 0"
)
PLAIN_GREY = "--data digits --data.size 16 --augment.scale [0.4,1.0] --augment.flip false"
COLOUR = f"--data pipelines.cifar --data.validation 0.0 --model.channels 16 {NETWORK} {PRETRAIN}"
SHARES = (0.01, 0.1, 1.0)
WIDTHS = [8, 24]


def cifar() -> Parts:
    """2,000 training and 2,000 test images of CIFAR-10 at 16x16 pixels."""
    whole = data.load(os.environ.get("CIFAR10", "cifar10"), size=16, validation=0)
    few = [part.subset(torch.arange(n)) for part, n in ((whole.train, 2000), (whole.test, 2000))]
    train, test = (replace(part, reference=None) for part in few)  # type: ignore[call-arg]
    return Parts(train, None, test, whole.classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--runs", type=Path, default=Path("experiments/pipelines"))
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="of labels, distill")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given = parser.parse_args()
    WIDTHS[:], SEEDS[:] = given.widths, given.seeds
    for part in given.parts or PARTS:
        rows = PARTS[part](given.runs)
        out = RESULTS / f"pipelines-{part}.json"
        command = f"python benchmarks/pipelines.py {part}"
        if part in ("labels", "distill"):
            command += f" --widths {' '.join(map(str, WIDTHS))}"
        command += f" --seeds {' '.join(map(str, SEEDS))}"
        content = {"benchmark": "pipelines", **provenance(), "command": command, "rows": rows}
        out.write_text(json.dumps(content, indent=1) + "\n")
        print(out, flush=True)


def _run(runs: Path, name: str, recipe: str, options: str) -> Run:
    path = runs / re.sub(r"[^\w.]+", "-", name)
    left = left_to_train(path, ["--recipe", recipe, *shlex.split(options)])
    if left is not None and (code := layerwise(["train", *left])):
        raise SystemExit(code)
    return Run.open(path)


def _curves(run: Run, options: str) -> list[dict[str, Any]]:
    """The rows of `layerwise labels` with these options, which are measured once."""
    asked = ["labels", str(run.path), *shlex.split(options), "--trust", "true"]
    if not _measured(run) and (code := layerwise(asked)):
        raise SystemExit(code)
    return json.loads(_measured(run)[0].read_text())["rows"]


def _measured(run: Run) -> list[Path]:
    """The results of `layerwise labels` that are complete."""
    return sorted(run.path.glob("labels-*/labels.json"))


def _simclr(runs: Path, width: int, seed: int) -> tuple[str, Run]:
    options = f"{GREY} --model.channels {width} {NETWORK} {PRETRAIN} --epochs 40"
    return options, _run(
        runs, f"simclr-{width}-{seed}", "simclrv2-1-pretrain", f"{options} --seed {seed}"
    )


def labels(runs: Path) -> list[dict[str, Any]]:
    """Fine-tuned and trained from the start, of two widths."""
    rows = []
    for width in WIDTHS:
        measured: dict[str, Any] = {"width": width, "recipe": "simclrv2-1-pretrain"}
        measured |= {"pretrained": {}, "untrained": {}}
        given = "--how finetune --epochs 10 --lr 0.005 --shares 0.01,0.1,1"
        for seed in SEEDS:
            measured["options"], run = _simclr(runs, width, seed)
            for row in _curves(run, given):
                kind = "untrained" if row["run"].endswith("untrained") else "pretrained"
                measured[kind].setdefault(f"{row['share']:g}", []).append(row["accuracy"])
                measured.setdefault("labels", {})[f"{row['share']:g}"] = row["labels"]
        rows.append({**measured, "finetuned": given})
    return rows


def distill(runs: Path) -> list[dict[str, Any]]:
    """Students of two widths of the wider network, fine-tuned with a hundredth and a tenth."""
    rows = []
    for share in SHARES[:2]:
        row: dict[str, Any] = {"share": share, "recipe": "simclrv2-3-distill", "teacher": []}
        for seed in SEEDS:
            name = f"simclr-{WIDTHS[-1]}-{seed}"
            (found,) = _measured(Run.open(runs / name))
            teacher = Run.open(found.parent / f"{name}-{share:g}-0")
            row["teacher"].append(teacher.metrics()[-1]["test_accuracy"])
            for width in WIDTHS:
                options = f"{PLAIN_GREY} --model.channels {width} {NETWORK} {TUNE} --epochs 20"
                given = f"{options} --seed {seed} --rule.objectives.teacher {teacher.path}"
                run = _run(runs, f"student-{width}-{share}-{seed}", row["recipe"], given)
                row["options"] = options
                row.setdefault(f"student {width}", []).append(run.metrics()[-1]["test_accuracy"])
        rows.append(row)
    return rows


def _probed(
    runs: Path, name: str, recipe: str, options: str, shares: str, untrained: bool = False
) -> dict[str, Any]:
    """Linear probes after the last convolution."""
    row: dict[str, Any] = {"name": name, "recipe": recipe, "options": options}
    asked = f"--shares {shares} --epochs 5 --untrained {str(untrained).lower()}"
    for seed in SEEDS:
        run = _run(runs, f"{name}-{seed}", recipe, f"{COLOUR} {options} --seed {seed}")
        for found in _curves(run, asked):
            kind = "untrained" if found["run"].endswith("untrained") else "trained"
            row.setdefault(kind, {}).setdefault(f"{found['share']:g}", []).append(found["accuracy"])
    return row


CHOICES = {
    "crops and colours, two hidden layers": "--rule.objectives.projector.layers 2",
    "crops and colours, one hidden layer": "",
    "crops and colours, linear projector": "--rule.objectives.projector.layers 0",
    "crops": "--augment.jitter null --augment.grey 0",
    "colours": "--augment.resized_crop false",
}


def choices(runs: Path) -> list[dict[str, Any]]:
    """Augmentations, and the projector's depth."""
    return [
        _probed(runs, name, "cifar10-simclr", f"--epochs 10 {options}", "1")
        for name, options in CHOICES.items()
    ]


PATCH = "--model.patch 8"
OBJECTIVES = {
    "SimCLR, end to end": ("cifar10-simclr", ""),
    "SimCLR, block by block": ("cifar10-simclr-blocks", ""),
    "blockwise Barlow Twins": ("cifar10-barlow-blocks", ""),
    "CLAPP++ without direct feedback": ("cifar10-clapp2d-blocks", ""),
    "CLAPP": ("cifar10-clapp-blocks", PATCH),
    "CPC v2, end to end": ("cifar10-cpc", PATCH),
    "CMC, end to end": ("cifar10-cmc", ""),
    "colours predicted, end to end": ("cifar10-colorize-blocks", "--at [classifier]"),
}


def objectives(runs: Path) -> list[dict[str, Any]]:
    """What local and end-to-end objectives learn without labels."""
    return [
        _probed(
            runs,
            name,
            recipe,
            f"--epochs 10 {options}",
            "0.01,1",
            recipe in ("cifar10-simclr", "cifar10-cpc"),
        )
        for name, (recipe, options) in OBJECTIVES.items()
    ]


PARTS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "labels": labels,
    "distill": distill,
    "choices": choices,
    "objectives": objectives,
}

if __name__ == "__main__":
    main()
