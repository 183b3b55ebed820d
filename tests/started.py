"""Trainings in processes of their own, as the command line starts them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

from layerwise.runs.run import Run

TINY = (
    "--model mlp --model.layers 3 --model.width 24 --model.dropout 0.2 --blocks 3 --epochs 2 "
    "--device cpu --pictures 0 --ema 0.9"
)
LONG = TINY.replace("--epochs 2", "--epochs 12 --save_every 7 --batch_size 32")


def layerwise(arguments: str, module: str = "layerwise") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *module.split(), *arguments.split()],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str]:
    """Exit code and what it said; nothing of it is left."""
    _, said = process.communicate(timeout=seconds)
    assert not list(stages_of(process))
    return process.returncode, said


def stages_of(process: subprocess.Popen[str] | BaseProcess) -> Iterator[int]:
    """The processes that it started, in the order of their ranks."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = dict(
                line.split("=", 1) for line in path.read_text().split("\0") if "=" in line
            )
            parent = re.search(r"PPid:\t(\d+)", (path.parent / "status").read_text())
        except (OSError, UnicodeDecodeError):
            continue
        if "RANK" in environment and parent and int(parent[1]) == process.pid:
            found[int(environment["RANK"])] = int(path.parent.name)
    return (found[rank] for rank in sorted(found))


def same(first: str, second: str) -> bool:
    """Bit for bit the same network, and the same metrics but for the clock."""
    models = [Path("experiments", run, "model.safetensors").read_bytes() for run in (first, second)]
    rows = []
    for name in (first, second):
        metrics = Run.open(f"experiments/{name}").metrics()
        clock = ("seconds", "images_per_s")
        rows.append([{k: v for k, v in row.items() if k not in clock} for row in metrics])
    return models[0] == models[1] and rows[0] == rows[1]


def until(happened: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def until_saved(run: str) -> None:
    until(Path("experiments", run, "checkpoints", "last.safetensors").exists)


def end_of(processes: Iterable[int], seconds: float = 60) -> None:
    """Wait until these processes have ended, whoever their parents are."""
    for process in processes:
        until(lambda process=process: not _runs(process), seconds)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
