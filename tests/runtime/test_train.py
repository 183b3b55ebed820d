"""`layerwise train --stages N`: the serial run's bits, whatever happens on the way."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from started import LONG, TINY, ended, layerwise, same, stages_of, until, until_saved

from layerwise.cli import main
from layerwise.runs.run import Run
from layerwise.trainer import Trainer

pytestmark = pytest.mark.gloo
LONGER = LONG.replace("--epochs 12", "--epochs 60")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_two_stages_are_the_serial_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With dropout and an average of weights; what began in serial goes on in stages, which this
    process starts."""

    def crash(trainer: Trainer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_finish_step", crash)
        assert main(f"train {TINY} --name two --runtime serial".split()) == 130
    assert main(f"train {TINY} --name one".split()) == 0
    code = main(["train", "--resume", "experiments/two", "--stages", "2"])
    assert code == 0, capfd.readouterr().err
    assert not list(stages_of(multiprocessing.current_process()))
    assert same("one", "two")
    first, second = (Run.open(f"experiments/{run}").load("last") for run in ("one", "two"))
    assert first is not None
    assert second is not None
    assert first["optimizers"].keys() == second["optimizers"].keys()
    assert first["rule"].keys() == second["rule"].keys()


@pytest.mark.slow
def test_a_stage_is_killed() -> None:
    """All end at once, with a line that names the rank; the run goes on to the same bits, in three
    stages, in two and in serial."""
    path = Path("experiments/killed")
    for rank, stages in ((1, 3), (0, 2), (2, 3)):
        before = _saved_at(path)
        begin = f"--resume {path}" if path.exists() else f"{LONGER} --name killed"
        process = layerwise(f"train {begin} --stages {stages}")
        _until_started(process, stages)
        _until_it_saves(path, before)
        os.kill(list(stages_of(process))[rank], signal.SIGKILL)
        since = time.monotonic()
        code, said = ended(process)
        assert time.monotonic() - since < 20
        assert code == 1
        assert f"rank {rank} is lost: it was ended by SIGKILL; continue: layerwise train" in said
    assert main(f"train --resume {path} --runtime serial".split()) == 0
    assert main(f"train {LONGER} --name whole".split()) == 0
    assert same("killed", "whole")


@pytest.mark.slow
def test_ten_kills() -> None:
    """At any moment, of any rank, in two stages or three: each time the run goes on from what it
    had kept, and in the end nothing of it shows."""
    chance, path, kept = random.Random(0), Path("experiments/killed"), 0
    for _ in range(10):
        stages, before = chance.choice([2, 3]), _saved_at(path)
        begin = f"--resume {path}" if path.exists() else f"{LONGER} --name killed"
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
    assert kept >= 5
    code, said = ended(layerwise(f"train --resume {path} --stages 2"))
    assert code == 0, said
    assert main(f"train {LONGER} --name whole".split()) == 0
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
def test_stages_that_do_not_wait_stop_while_others_save() -> None:
    """A stage saves what is due at a step that another has passed, or not reached yet."""
    path = Path("experiments/saves")
    saved = path / "checkpoints/last.safetensors"
    begin = f"{LONGER.replace('--save_every 7', '--save_every 1')} --name saves --stages 3"
    for k in range(6):
        start = f"--resume {path}" if path.exists() else f"{begin} --replay 3"
        before = saved.stat().st_mtime_ns if saved.exists() else 0
        process = layerwise(f"train {start}")
        until(lambda t=before: saved.exists() and saved.stat().st_mtime_ns != t)
        time.sleep(0.05 * k)
        process.send_signal(signal.SIGINT)
        code, said = ended(process, 60)
        assert code == 130, said


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--stages 3", "--stages 3 --replicas 1 contradicts 2 processes started together; start 3"),
        ("--runtime serial", "--runtime serial contradicts 2 processes started together"),
    ],
)
def test_more_or_fewer_processes_than_stages(
    options: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torchrun = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    assert main(f"train {TINY} {options}".split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not Path("experiments").exists()


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
