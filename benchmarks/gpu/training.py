"""Short trainings by the command line, interrupted and resumed to the same bits."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import safetensors.torch
import torch

from gpu.command import layerwise, rows_of
from gpu.rows import Rows

DIGITS = "--data digits --pictures 0"
# The options, and whether they need CUDA.
TRAININGS = {
    "DGL": ("--model resnet20 --model.width 0.5 --rule DGL --augment.crop 1 --ema 0.9", False),
    "DGL, bf16": (
        "--model basic_cnn --rule DGL --precision bf16 --channels_last true --step_per_block true "
        "--optimizer AdamW --optimizer.lr 0.002",
        False,
    ),
    "Backprop, fp16": ("--model basic_cnn --rule Backprop --precision 16 --clip_norm 1", True),
    "SPSA": ("--model mlp --model.layers 2 --blocks all --rule SPSA --optimizer.lr 0.001", False),
}
QUICK = {"DGL": ("--model mlp --model.layers 2 --model.width 16 --blocks all --rule DGL", False)}
EPOCHS, SIZES = 12, "--batch_size 64 --save_every 7"
FEW_EPOCHS, FEW_SIZES = 4, "--batch_size 512 --save_every 2"


def check(rows: Rows) -> None:
    """A row for each part of each training. On a GPU the trainings run at the same time, because
    most of their time passes while programs start."""
    trainings = QUICK if rows.quick else TRAININGS
    if not rows.cuda:
        for name, about in trainings.items():
            _one(rows, name, *about)
        return
    with ThreadPoolExecutor(len(trainings)) as pool:
        for each in [pool.submit(_one, rows, name, *about) for name, about in trainings.items()]:
            each.result()


def _one(rows: Rows, name: str, options: str, needs_cuda: bool) -> None:
    if needs_cuda and not rows.cuda:
        rows.skip(name)
    elif rows.late():
        rows.add(name, False, "no time was left")
    else:
        with tempfile.TemporaryDirectory() as folder:
            _training(rows, name, options, Path(folder))


def _training(rows: Rows, name: str, options: str, folder: Path) -> None:
    """Train without and with an interruption, compare the weights, evaluate."""
    quick, runs = rows.quick, ["--runs", str(folder)]
    epochs, sizes = (FEW_EPOCHS, FEW_SIZES) if quick else (EPOCHS, SIZES)
    config = f"{DIGITS} {sizes} {options} --epochs {epochs} --device {rows.device}".split()
    whole = layerwise(["train", *config, *runs, "--name", "whole"], here=quick)
    if whole.code:
        rows.add(f"{name}: train", False, whole.said)
        return
    rows.add(f"{name}: train", True, f"{rows_of(folder / 'whole')} epochs")
    run = folder / "parts"
    part = layerwise(
        ["train", *config, *runs, "--name", "parts"],
        here=quick,
        interrupt_when=lambda: rows_of(run) >= 1,
    )
    done = rows_of(run)
    if part.code != 130 or done >= epochs:
        rows.add(f"{name}: interrupt", False, f"{done} epochs, {part.said}")
        return
    rest = layerwise(["train", "--resume", str(run)], here=quick)
    if rest.code:
        rows.add(f"{name}: resume", False, rest.said)
        return
    differs = different(folder / "whole", run)
    rows.add(
        f"{name}: resume",
        not differs,
        f"after {done} of {epochs} epochs: {differs or 'the same bits'}",
    )
    command = ["evaluate", str(run), "--device", str(rows.device)]
    found = layerwise(command, here=quick)
    rows.add(f"{name}: evaluate", found.code == 0, found.said if found.code else "ran")


def different(one: Path, other: Path) -> str:
    """How the weights of two runs differ; empty if they have the same bits."""
    a, b = (safetensors.torch.load_file(run / "model.safetensors") for run in (one, other))
    if a.keys() != b.keys():
        return "other tensors"
    moved = [name for name in a if not torch.equal(a[name], b[name])]
    if not moved:
        return ""
    return f"{len(moved)} of {len(a)} tensors differ, by up to {distance(a, b):.1e} of their norm"


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a tensor of floating point numbers."""
    found = [0.0]
    for name, tensor in a.items():
        if tensor.is_floating_point():
            size = float(b[name].double().norm())
            found.append(float((tensor.double() - b[name].double()).norm()) / max(size, 1e-12))
    return max(found)
