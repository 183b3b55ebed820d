"""Stages and replicas: each process on a GPU of its own if there are two, otherwise on one GPU."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import safetensors.torch
import torch

from gpu.command import layerwise
from gpu.rows import Rows
from gpu.training import different, distance

TRAIN = (
    "train --data digits --batch_size 128 --epochs 1 --optimizer.lr 0.01 --pictures 0 --timeout 60"
)
MLP = "--model mlp --model.layers 3 --model.width 64 --blocks all"
CNN = "--model basic_cnn --blocks all"
NORM = "--model resnet20 --model.width 0.5 --blocks 3"
CLOSE = 1e-3  # relative, of weights that are computed in another order


def check(rows: Rows) -> None:
    """A row for each way to use several processes, compared with one process."""
    if rows.quick:
        rows.skip("several processes", "takes longer than --quick allows")
        return
    alone = torch.cuda.device_count() < 2 if rows.cuda else True
    several = str(rows.device) if alone or not rows.cuda else "cuda"
    on = f"two GPUs, device {several}" if not alone else f"one device, {several}"
    # The network, the rule, the options of the several processes, and whether they need CUDA.
    ways = {
        "stages, DGL": (CNN, "DGL", "--stages 2", False),
        "stages that send back, DNI": (MLP, "DNI", "--stages 2", False),
        "replicas, Backprop": (MLP, "Backprop", "--replicas 2", False),
        "replicas, SyncBatchNorm, DGL": (
            NORM,
            "DGL",
            "--replicas 2 --sync_batchnorm true",
            True,
        ),
    }
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(4 if rows.cuda else 1) as pool:
        waiting = []
        for number, (name, (network, rule, options, needs_cuda)) in enumerate(ways.items()):
            if needs_cuda and not rows.cuda:
                rows.skip(name)
                continue
            config = f"{TRAIN} {network} --rule {rule} --runs {folder}".split()
            way = f"{options} --device {several}".split()
            waiting.append(pool.submit(_way, rows, name, config, way, Path(folder), number, on))
        for each in waiting:
            each.result()


def _way(
    rows: Rows, name: str, config: list[str], way: list[str], folder: Path, number: int, on: str
) -> None:
    """Train in one process and in several, and compare the weights."""
    one, several = folder / f"one{number}", folder / f"several{number}"
    for run, options in ((one, ["--device", str(rows.device)]), (several, way)):
        if rows.late():
            rows.add(name, False, "no time was left")
            return
        done = layerwise([*config, *options, "--name", run.name], module=True)
        if done.code:
            rows.add(name, False, f"{on}, {run.name}: {done.said}")
            return
    _compare(rows, name, one, several, on)


def _compare(rows: Rows, name: str, one: Path, several: Path, on: str) -> None:
    if not (differs := different(one, several)):
        rows.add(name, True, f"{on}: the bits of one process")
        return
    a, b = (safetensors.torch.load_file(run / "model.safetensors") for run in (one, several))
    far = distance(a, b)
    rows.add(name, far < CLOSE, f"{on}: {differs}", distance=far)
