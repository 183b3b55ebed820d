"""Interrupted and continued training is the same training, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from layerwise.cli.main import main
from layerwise.errors import Interrupted
from layerwise.runs.run import Run

AUGMENTED = {"flip": True, "crop": 1, "cutout": 3}
VARIANTS = {
    "sgd, all of it": {
        "model": {"name": "mlp", "layers": 2, "width": 12, "batch_norm": True, "dropout": 0.2},
        "augment": AUGMENTED,
        "accumulate": 2,
        "ema": 0.9,
        "label_smoothing": 0.1,
        "clip_norm": 1.0,
        "save_every": 2,
    },
    "adamw, step per block, channels last": {
        "model": {"name": "basic_cnn", "channels": 4, "kernel_size": 3, "hidden": 8},
        "augment": AUGMENTED,
        "optimizer": {"name": "AdamW", "lr": 0.01},
        "schedule": {"name": "Cosine", "warmup": 0.5},
        "step_per_block": True,
        "lr_auxiliary": 2.0,
        "lr_last": 0.5,
        "channels_last": True,
        "save_every": 1,
    },
    "matrices that are no block's": {"rule": {"name": "FeedbackAlignment"}, "save_every": 2},
    "feedback drawn anew for each batch": {
        "rule": {"name": "SignSymmetry", "random_magnitude": True, "redraw": True},
        "accumulate": 2,
        "save_every": 1,
    },
    "a state that batches carry": {
        "data": {"name": "text:alphabet.txt", "context": 6, "contiguous": True},
        "model": {"name": "lstm", "width": 4},
        "blocks": 1,
        "rule": {"name": "TruncatedBPTT", "window": 3, "carry": True, "synthetic": 0.5},
        "batch_size": 40,
        "eval_batch_size": 40,
        "ema": 0.5,
        "save_every": 2,
    },
    "bf16": {"precision": "bf16", "save_every": 4, "ema": 0.5, "seed": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_any_step(
    variant, trainer_in, crash_at, crash, assert_same_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("alphabet.txt").write_text("abcdefghij" * 200)
    options = VARIANTS[variant] | {"epochs": 2}
    trainer = trainer_in("straight", **options)
    trainer.fit()
    for n, kills in enumerate([(1, 3, 2), (trainer.stepper.steps_per_epoch, 4), (5, 1, 1)]):
        for kill in kills:
            crash_at(kill)
            with pytest.raises(crash):
                trainer_in(f"killed-{n}", **options).fit()
        crash_at(0)
        trainer_in(f"killed-{n}", **options).fit()
        assert_same_run("straight", f"killed-{n}")


@pytest.mark.parametrize("where", ["metrics", "best", "last"])
def test_killed_while_an_epoch_is_written(where, trainer_in, crash, assert_same_run, monkeypatch):
    """The row is there and the checkpoint is not, or the best checkpoint is and the last is not."""
    trainer_in("straight", epochs=3).fit()
    save, add = Run.save, Run.add_metrics
    left = [2]

    def dies(name, write):
        def written(run, *arguments):
            write(run, *arguments)
            if name == where or arguments[0] == where:
                left[0] -= 1
                if left[0] == 0:
                    raise crash

        return written

    monkeypatch.setattr(Run, "save", dies("", save))
    monkeypatch.setattr(Run, "add_metrics", lambda run, row: dies("metrics", add)(run, row))
    with pytest.raises(crash):
        trainer_in("killed", epochs=3).fit()
    trainer_in("killed", epochs=3).fit()
    assert_same_run("straight", "killed")


@pytest.mark.parametrize("step", [1, 4, 6, 9])
def test_stopped_by_a_signal(step, trainer_in, assert_same_run, monkeypatch, tmp_path):
    trainer_in("straight").fit()
    trainer = trainer_in("stopped")
    finish = trainer._finish_step

    def finish_step():
        finish()
        if trainer.position.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "_finish_step", finish_step)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=f"step {step}; continue: layerwise train --resume"):
        trainer.fit()
    assert signal.getsignal(signal.SIGINT) is before
    assert Run(tmp_path / "stopped").load("last")["step"] == step
    trainer_in("stopped").fit()
    assert_same_run("straight", "stopped")


def test_stopped_while_evaluating(trainer_in, assert_same_run, monkeypatch):
    trainer_in("straight").fit()
    trainer = trainer_in("stopped")
    exits = trainer.rule.exits

    def stopping(x):
        trainer.stop.asked = True
        return exits(x)

    monkeypatch.setattr(trainer.rule, "exits", stopping)
    for loader in trainer.eval_loaders.values():
        loader.batch_size = 50
    with pytest.raises(Interrupted):
        trainer.fit()
    trainer_in("stopped").fit()
    assert_same_run("straight", "stopped")


def test_a_second_signal_stops_at_once(trainer_in, monkeypatch):
    trainer = trainer_in("stopped")

    def finish_step():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "_finish_step", finish_step)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()


def test_continuing_a_finished_run_changes_nothing(trainer_in, tmp_path):
    trainer_in("run").fit()
    before = Run(tmp_path / "run").metrics()
    trainer_in("run").fit()
    assert Run(tmp_path / "run").metrics() == before


def test_same_seed_same_bits_and_other_seed_other_bits(trainer_in, assert_same_run, tmp_path):
    trainer_in("a", epochs=1, seed=5).fit()
    torch.manual_seed(99)  # what the caller did before plays no part
    trainer_in("b", epochs=1, seed=5).fit()
    trainer_in("c", epochs=1, seed=6).fit()
    assert_same_run("a", "b")
    one, other = (Run(tmp_path / n).load("last")["rule"] for n in "ac")
    assert not any(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_kill_9_of_a_process(tmp_path, assert_same_run):
    """Ten times at a random moment, from the first step to the last epoch."""
    context = multiprocessing.get_context("forkserver")  # imports torch once
    context.set_forkserver_preload(["layerwise.cli"])
    options = (
        "train --model mlp --model.width 16 --model.dropout 0.1 --blocks 2 --epochs 20 "
        "--batch_size 32 --augment.flip true --augment.crop 1 --accumulate 2 --ema 0.9 "
        f"--save_every 3 --device cpu --runs {tmp_path} --name"
    )

    def start(line: str) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=main, args=(line.split(),))
        process.start()
        return process

    start(f"{options} straight").join()
    took = sum(row["seconds"] for row in Run(tmp_path / "straight").metrics())
    killed = Run(tmp_path / "killed")
    log = killed.path / "log.txt"
    draw, kills, middles = random.Random(0), 0, set()
    while not (killed.path / "model.safetensors").exists():
        there = (killed.path / "config.yaml").exists()
        size = log.stat().st_size if log.exists() else 0
        process = start(f"train --resume {killed.path}" if there else f"{options} killed")
        if kills < 10:
            while process.is_alive() and (not log.exists() or log.stat().st_size == size):
                time.sleep(0.001)
            time.sleep(draw.uniform(0, took / 6))
            process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        state = killed.load("last")
        if state is not None and state["batch"] > 0:
            middles.add(state["step"])
    assert kills >= 5
    assert len(middles) >= 2  # killed in the middle of an epoch
    assert_same_run("straight", "killed")
    assert not list(killed.path.rglob(".*"))
