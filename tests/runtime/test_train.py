"""`layerwise train --stages N`: the serial run's bits, whatever happens on the way."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerwise.cli import main
from layerwise.runs.run import Run
from layerwise.trainer import Trainer

pytestmark = pytest.mark.gloo
TINY = (
    "--model mlp --model.layers 3 --model.width 24 --model.dropout 0.2 --blocks 3 --epochs 2 "
    "--device cpu --pictures 0 --ema 0.9"
)
LONG = TINY.replace("--epochs 2", "--epochs 12 --save_every 7 --batch_size 32")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def layerwise(arguments: str, module: str = "layerwise") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *module.split(), *arguments.split()],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
    """Exit code and what it said; nothing of it is left."""
    _, said = process.communicate(timeout=seconds)
    assert not list(stages_of(process))
    return process.returncode, said


def stages_of(process: subprocess.Popen[str]) -> Iterator[int]:
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


def until(happened: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def until_saved(run: str) -> None:
    until(Path("experiments", run, "checkpoints", "last.safetensors").exists)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_two_stages_are_the_serial_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout and an average of weights; what began in serial goes on in stages."""

    def crash(trainer: Trainer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_finish_step", crash)
        assert main(f"train {TINY} --name two --runtime serial".split()) == 130
    process = layerwise("train --resume experiments/two --stages 2")
    assert main(f"train {TINY} --name one".split()) == 0
    code, said = ended(process)
    assert code == 0, said
    assert same("one", "two")
    first, second = (Run.open(f"experiments/{run}").load("last") for run in ("one", "two"))
    assert first is not None
    assert second is not None
    assert first["optimizers"].keys() == second["optimizers"].keys()
    assert first["rule"].keys() == second["rule"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_stage_is_killed(rank: int) -> None:
    """All end at once, with a line that names the rank; the run goes on to the same bits, in three
    stages, in two and in serial."""
    process = layerwise(f"train {LONG} --name killed --stages 3")
    until_saved("killed")
    os.kill(list(stages_of(process))[rank], signal.SIGKILL)
    since = time.monotonic()
    code, said = ended(process)
    assert time.monotonic() - since < 20
    assert code == 1
    assert f"rank {rank} is lost: it was ended by SIGKILL; continue: layerwise train" in said
    options = ("--stages 3", "--stages 2", "--runtime serial")[rank]
    code, said = ended(layerwise(f"train --resume experiments/killed {options}"))
    assert code == 0, said
    assert main(f"train {LONG} --name whole".split()) == 0
    assert same("killed", "whole")


@pytest.mark.slow
def test_twenty_kills() -> None:
    """At any moment, of any rank, in two stages or three: each time the run goes on from what it
    had kept, and in the end nothing of it shows."""
    longer = LONG.replace("--epochs 12", "--epochs 80")
    chance, path, kept = random.Random(0), Path("experiments/killed"), 0
    for _ in range(20):
        stages, before = chance.choice([2, 3]), _saved_at(path)
        begin = f"--resume {path}" if path.exists() else f"{longer} --name killed"
        process = layerwise(f"train {begin} --stages {stages}")
        _until_started(process, stages)
        if chance.random() < 0.7:  # once there is a step to lose; else while it starts
            _until_it_saves(path, before)
        time.sleep(chance.uniform(0, 0.2))
        rank = chance.randrange(stages)
        os.kill(list(stages_of(process))[rank], signal.SIGKILL)
        code, said = ended(process)
        assert code == 1, said
        assert f"rank {rank} is lost" in said
        kept += _saved_at(path) != before
    assert kept >= 10
    code, said = ended(layerwise(f"train --resume {path} --stages 2"))
    assert code == 0, said
    assert main(f"train {longer} --name whole".split()) == 0
    assert same("killed", "whole")


def _until_started(process: subprocess.Popen[str], stages: int) -> None:
    until(lambda: len(list(stages_of(process))) == stages)


def _until_it_saves(path: Path, before: float) -> None:
    until(lambda: _saved_at(path) != before)


def _saved_at(path: Path) -> float:
    kept = path / "checkpoints" / "last.safetensors"
    return kept.stat().st_mtime if kept.exists() else 0.0


@pytest.mark.slow
def test_stages_are_started_again() -> None:
    process = layerwise(f"train {LONG} --name again --stages 2 --restarts 1")
    until_saved("again")
    os.kill(list(stages_of(process))[1], signal.SIGKILL)
    code, said = ended(process)
    assert code == 0, said
    assert main(f"train {LONG} --name whole".split()) == 0
    assert same("again", "whole")
    assert "resumed at step" in Path("experiments/again/log.txt").read_text()


@pytest.mark.slow
def test_stages_stop_together() -> None:
    process = layerwise(f"train {LONG} --name stopped --stages 3")
    until_saved("stopped")
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code == 130
    assert said.count("stopped at step") == 1
    assert ended(layerwise("train --resume experiments/stopped"))[0] == 0
    assert main(f"train {LONG} --name whole".split()) == 0
    assert same("stopped", "whole")


@pytest.mark.slow
def test_stages_that_do_not_wait() -> None:
    """With replay every stage makes its steps, whatever comes through; it learns, and stops and
    goes on like any other run."""
    train = LONG.replace("--epochs 12", "--epochs 8").replace("--model.dropout 0.2 ", "")
    process = layerwise(f"train {train} --optimizer.lr 0.05 --name replay --stages 3 --replay 3")
    until_saved("replay")
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code == 130, said
    code, said = ended(layerwise("train --resume experiments/replay"))
    assert code == 0, said
    rows = Run.open("experiments/replay").metrics()
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert (rows[-1]["test_accuracy"] or 0) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["--replicas 2 --rule Backprop", "--stages 2 --replicas 2"])
def test_replicas(kind: str) -> None:
    """Without dropout and BatchNorm the mean over the parts of a batch is what accumulating them in
    one process gives; what replicas have begun goes on so."""
    rule = "--rule Backprop" if "Backprop" in kind else "--rule DGL"
    train = LONG.replace("--epochs 12", "--epochs 3").replace("--model.dropout 0.2 ", "")
    process = layerwise(f"train {train} {kind} --name replicas")
    until_saved("replicas")
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code == 130, said
    assert said.count("stopped at step") == 1
    code, said = ended(layerwise("train --resume experiments/replicas"))
    assert code == 0, said
    parts = train.replace("--batch_size 32", "--batch_size 16 --accumulate 2")
    assert main(f"train {parts} {rule} --name parts".split()) == 0
    runs = [Run.open(f"experiments/{name}").metrics() for name in ("replicas", "parts")]
    for ours, theirs in zip(*runs, strict=True):
        for column in ("train_loss", "test_loss", "train_accuracy", "validation_accuracy"):
            assert ours[column] == pytest.approx(theirs[column], rel=1e-5), column


@pytest.mark.slow
def test_a_stage_that_hangs() -> None:
    process = layerwise(f"train {LONG} --name hung --stages 2 --timeout 5")
    until_saved("hung")
    stages = list(stages_of(process))
    os.kill(stages[0], signal.SIGSTOP)
    code, said = ended(process)
    assert code == 1
    assert "rank 0 is lost: it sent nothing for 5 s" in said


@pytest.mark.slow
def test_torchrun() -> None:
    """Started by torchrun, also a second time after a failure; how many processes it starts decides
    how many stages there are."""
    run = "torch.distributed.run --nproc-per-node 2 --standalone"
    train = f"-m layerwise train {LONG} --name torchrun"
    process = layerwise(f"--max-restarts 1 {train}", run)
    until_saved("torchrun")
    os.kill(next(stages_of(process)), signal.SIGKILL)
    code, said = ended(process)
    assert code == 0, said
    assert main(f"train {LONG} --name whole".split()) == 0
    assert same("torchrun", "whole")

    code, said = ended(layerwise(f"{train}-3 --stages 3", run))
    assert code != 0
    assert "--stages 3 --replicas 1 contradicts 2 processes started together; start 3" in said
    code, said = ended(layerwise(f"{train}-serial --runtime serial", run))
    assert "--runtime serial contradicts 2 processes started together" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--stages 4", "the network is cut into 3 blocks; give at most 3 stages"),
        ("--stages 0", "--stages 0: give at least 1"),
        ("--runtime layer_parallel", "into how many processes? give --stages N"),
        ("--runtime serial --stages 2", "--stages 2 --replicas 1 contradicts --runtime serial"),
        ("--stages 2 --clip_norm 1", "contradicts --clip_norm 1"),
        ("--stages 2 --rule Backprop", "Backprop needs backward information"),
        ("--stages 2 --rule DirectGlobal", "DirectGlobal needs forward and error information"),
        ("--stages 2 --rule MAN", "MAN needs forward and weights information"),
        ("--stages 2 --rule DeepSupervision", "DeepSupervision needs backward information"),
        ("--stages 2 --replay 2 --rule LocalCritic", "LocalCritic waits for a gradient from"),
        ("--stages 2 --restarts -1", "--restarts -1: give 0 or more"),
        ("--stages 2 --timeout 0", "--timeout 0"),
        ("--replicas 0", "--replicas 0: give at least 1"),
        ("--replicas 3", "--batch_size 128 --replicas 3: each replica takes an equal part"),
        ("--stages 2 --replay -2", "--replay -2: give 0 or more"),
        ("--stages 2 --replay 2 --rule DNI", "DNI waits for a gradient from the next block"),
    ],
)
def test_bad_input(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"train {TINY} {options}".split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not Path("experiments").exists()
