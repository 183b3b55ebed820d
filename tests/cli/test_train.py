"""`layerwise train`: what is in a run folder, and where it comes from."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
import yaml
from torch.nn import functional as F

from layerwise import data, models, rules
from layerwise.costs.blocks import Costs
from layerwise.data import Augment, Loader
from layerwise.runs.run import Run
from layerwise.trainer import Trainer


def test_a_run_folder(cli):
    """Everything that a run leaves, the pictures too."""
    line = (
        "train --model mlp --model.layers 2 --model.width 12 --blocks 2 --epochs 3 --batch_size 64 "
        "--runs runs --device cpu"
    )
    result = cli(line)
    assert result.code == 0
    assert "done: runs/digits-mlp-dgl-1" in result.err
    assert "\x1b" not in result.err  # no terminal, no colours, no bar
    assert "\r" not in result.err
    assert result.err.count("epoch ") >= 3
    run = Path("runs/digits-mlp-dgl-1")
    found = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    pictures = {f"curves/{name}.{kind}" for name in ("curves", "blocks") for kind in ("png", "svg")}
    assert found == pictures | {
        "checkpoints/best.safetensors",
        "checkpoints/last.safetensors",
        "config.yaml",
        "cost.json",
        "data.json",
        "environment.json",
        "log.txt",
        "metrics.csv",
        "model.safetensors",
    }
    for name in pictures:
        start = (run / name).read_bytes()[:200]
        assert start.startswith(b"\x89PNG") if name.endswith("png") else b"<?xml" in start

    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["rule"] == {
        "name": "DGL",
        "head": {"name": "MLP", "layers": 1, "width": 256, "pool": 2},
    }
    assert config["schedule"]["name"] == "OneCycle"
    assert config["seed"] == 0
    assert config["device"] == "cpu"
    assert not {"runs", "name", "resume", "config", "recipe"} & config.keys()

    environment = json.loads((run / "environment.json").read_text())
    assert {"command", "layerwise", "torch", "python", "cpu", "cores"} <= environment.keys()
    assert str(Path.home()) not in json.dumps(environment)

    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    splits = ("train", "validation", "test")
    wanted = ["epoch", "step", "lr", "seconds", "images_per_s"]
    wanted += [f"{s}_{m}" for s in splits for m in ("loss", "accuracy")]
    wanted += [f"{s}_{m}_block{i}" for i in (0, 1) for s in splits for m in ("loss", "accuracy")]
    assert list(rows[0]) == wanted
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["20", "40", "60"]  # 1294 images, full batches of 64
    assert float(rows[-1]["test_accuracy"]) > 0.5

    net = models.mlp((1, 8, 8), 10, layers=2, width=12)
    net.load_state_dict(safetensors.torch.load_file(run / "model.safetensors"))
    test = data.load("digits").test
    x, y = next(Loader(test, len(test), augment=Augment(), train=False).epoch(0))
    logits = net.eval()(x)
    accuracy = (logits.argmax(1) == y).double().mean().item()
    assert float(rows[-1]["test_accuracy"]) == pytest.approx(accuracy)
    assert float(rows[-1]["test_loss"]) == pytest.approx(F.cross_entropy(logits, y).item())

    costs = Costs.from_json((run / "cost.json").read_text())
    # 64 -> 12 -> 12 -> 10 with biases; a multiply-add counts as two.
    assert costs.parameters == 64 * 12 + 12 + 12 * 12 + 12 + 12 * 10 + 10
    assert costs.flops == 2 * (64 * 12 + 12 * 12 + 12 * 10)
    assert costs.blocks[0].head_parameters == 12 * 256 + 256 + 256 * 10 + 10
    assert costs.head_flops == 2 * (12 * 256 + 256 * 10)

    validation = [float(row["validation_accuracy"]) for row in rows]
    best = Run(run).load("best")
    assert best["epoch"] == 1 + validation.index(max(validation))
    log = (run / "log.txt").read_text()
    assert all(f"epoch {e}/3" in log for e in (1, 2, 3))


# What else a rule needs to learn in a few epochs. BatchNorm: the labels alone, which never are
# satisfied, would drive a ReLU's output away.
MLP = "--model mlp --model.layers 2 --model.width 12 --model.batch_norm true --blocks 2"
NEEDS = {
    "ForwardGradient": f"{MLP} --rule.directions 8 --optimizer.lr 0.03",
    "SPSA": f"{MLP} --rule.directions 8 --optimizer.lr 0.03",
    "NoProp": "--model noprop_cnn --model.steps 3 --model.channels 8 --model.width 32 "
    "--optimizer AdamW --optimizer.lr 0.01",
    "DiffusionBlocks": "--model diffusion_vit --model.steps 3 --model.layers 1 --model.width 64 "
    "--optimizer AdamW --optimizer.lr 0.01",
}


# One of each family, and those that train in a way of their own.
QUICK = {
    "DGL",
    "DNI",
    "DifferenceTargetPropagation",
    "DirectFeedbackAlignment",
    "ForwardForward",
    "LocalForwardGradient",
    "MAN",
    "PEPITA",
    "Sequential",
}


@pytest.mark.parametrize(
    "rule",
    [pytest.param(r, marks=[pytest.mark.slow] * (r not in QUICK)) for r in rules.__all__],
)
def test_every_rule_learns(rule, cli, no_pictures):
    options = NEEDS.get(rule, f"{MLP} --optimizer.lr 0.1")
    result = cli(
        f"train {options} --rule {rule} --epochs 4 --batch_size 64 --device cpu --runs runs "
        "--name run"
    )
    assert result.code == 0, result.err
    assert Run(Path("runs/run")).metrics()[-1]["test_accuracy"] > 0.3


def test_names(trained, cli):
    trained("a")
    before = {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()}
    result = cli("train --model mlp --runs runs --name a")
    assert result.code == 2
    assert "never overwritten" in result.err
    assert {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()} == before


def test_options_within_options(trained):
    options = "--rule.head MLP --rule.head.width 64 --rule.head.layers 2"
    config = Run(trained("run", options)).config
    assert config["rule"]["head"] == {"name": "MLP", "layers": 2, "width": 64, "pool": 2}
    weights = Run(Path("runs/run")).load("last")["rule"]
    assert weights["objectives.0.head.0.weight"].shape == (64, 12)


def test_the_command_line_comes_after_the_config(trained):
    Path("c.yaml").write_text(
        "data: digits\n"
        "rule: {name: DGL, head: {name: MLP, width: 7, layers: 2}}\n"
        "optimizer: {name: AdamW, lr: 0.01, beta1: 0.8}\n"
        "schedule: Cosine\n"
        "label_smoothing: 0.1\n"
        "augment: {flip: true, scale: [0.5, 1.0]}\n"
    )
    whole = Run(trained("a", "--config c.yaml --rule.head.width 9")).config
    assert whole["rule"]["head"] == {"name": "MLP", "layers": 2, "width": 9, "pool": 2}
    assert whole["optimizer"] == {
        "name": "AdamW",
        "lr": 0.1,
        "beta1": 0.8,
        "beta2": 0.999,
        "weight_decay": 0.01,
    }
    assert whole["schedule"] == {"name": "Cosine", "warmup": 0.0, "final": 0.0}
    assert whole["label_smoothing"] == 0.1
    assert whole["augment"]["flip"] is True
    assert whole["augment"]["scale"] == [0.5, 1.0]
    # Another optimizer: the config's options of the old one go.
    other = "--optimizer SGD --rule.head Linear --label_smoothing 0"
    config = Run(trained("b", f"--config c.yaml {other}")).config
    assert config["optimizer"]["name"] == "SGD"
    assert "beta1" not in config["optimizer"]
    assert config["rule"]["head"]["name"] == "Linear"
    assert "width" not in config["rule"]["head"]
    assert config["label_smoothing"] == 0
    assert config["schedule"]["name"] == "Cosine"
    config = Run(trained("c", "--config c.yaml --rule Backprop")).config
    assert config["rule"] == {"name": "Backprop", "checkpoint": False}


def test_a_recipe(cli, no_pictures):
    result = cli("train --recipe demo-dgl --epochs 1 --model mlp --blocks 2 --at null --runs runs")
    assert result.code == 0, result.err
    config = Run(Path("runs/digits-mlp-dgl-1")).config
    assert config["batch_size"] == 64
    assert config["rule"]["head"]["width"] == 64
    assert "channels" not in config["model"]


def test_a_runs_own_config_reproduces_it(trained, cli):
    options = (
        "--augment.flip true --augment.crop 1 --model.dropout 0.1 --optimizer AdamW "
        "--optimizer.lr 0.01 --rule.head.width 16 --seed 7 --ema 0.9 --schedule Step "
        "--schedule.at 0.3,0.6 --precision bf16"
    )
    a = trained("a", options)
    result = cli(f"train --config {a}/config.yaml --runs runs --name b")
    assert result.code == 0, result.err
    b = Path("runs/b")
    assert (a / "config.yaml").read_text() == (b / "config.yaml").read_text()
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    timeless = [
        [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in rows]
        for rows in (Run(a).metrics(), Run(b).metrics())
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_continued(number, trained, cli, monkeypatch):
    straight = trained("straight", "--save_every 2")
    finish = Trainer._finish_step

    def finish_step(self):
        finish(self)
        if self.position.step == 4:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_finish_step", finish_step)
        line = (straight / "config.yaml").as_posix()
        result = cli(f"train --config {line} --runs runs --name stopped")
    assert result.code == 130
    last = result.err.strip().splitlines()[-1]
    assert last == "stopped at step 4; continue: layerwise train --resume runs/stopped"
    assert not Path("runs/stopped/model.safetensors").exists()
    before = (Path("runs/stopped") / "environment.json").read_bytes()
    result = cli("train --resume runs/stopped")
    assert result.code == 0, result.err
    a, b = (Path("runs") / name / "model.safetensors" for name in ("straight", "stopped"))
    assert a.read_bytes() == b.read_bytes()
    log = Path("runs/stopped/log.txt").read_text()
    assert "resumed at step 4" in log
    # How it was begun stays on record.
    assert (Path("runs/stopped") / "environment.json").read_bytes() == before


def test_interrupted_elsewhere(cli, monkeypatch):
    """Before training, and in other commands."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("layerwise.experiment.prepared.build", interrupt)
    monkeypatch.setattr("layerwise.cli.compare.Run.open", interrupt)
    for line in ("train", "compare a b"):
        result = cli(line)
        assert (result.code, result.err) == (130, "interrupted\n")


def test_continued_before_the_first_checkpoint(trained, cli, monkeypatch):
    trained("straight")

    def crash(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_finish_step", crash)
        assert cli("train --config runs/straight/config.yaml --runs runs --name b").code == 130
    assert cli("train --resume runs/b").code == 0
    a, b = (Path("runs") / name / "model.safetensors" for name in ("straight", "b"))
    assert a.read_bytes() == b.read_bytes()
    assert "at the start: no checkpoint" in Path("runs/b/log.txt").read_text()


def test_longer(trained, cli):
    """A complete run goes on to the bits of one that was begun with that length; what it was stays
    on record."""
    constant = "--schedule Constant --schedule.warmup 1 --patience 5"
    run = trained("short", constant, fresh=True)
    result = cli(f"train --resume {run} --epochs 4")
    assert result.code == 0, result.err
    straight = trained("straight", f"{constant} --epochs 4")
    for name in ("model.safetensors", "config.yaml"):
        assert (run / name).read_bytes() == (straight / name).read_bytes()
    a, b = (Run(path).load("last") for path in (run, straight))
    torch.testing.assert_close(a["optimizers"], b["optimizers"], rtol=0, atol=0)
    assert len(Run(run).metrics()) == 4
    assert (
        "4 epochs instead of 2; all files as they were are in set-aside-1"
        in (run / "log.txt").read_text()
    )
    before = Run(run / "set-aside-1")
    assert (before.config["epochs"], len(before.metrics()), before.load("last")["epoch"]) == (
        2,
        2,
        2,
    )
    assert (before.path / "model.safetensors").is_file()
    assert cli(f"train --resume {run} --epochs 4").code == 0
    assert not (run / "set-aside-2").exists()
    result = cli(f"train --resume {run} --epochs 3")
    assert result.err.endswith("the run has trained 4 epochs; give more\n")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("", "the learning rate of OneCycle depends on the number of epochs: at step 1 of"),
        ("--rule Sequential --schedule Constant", "Sequential divides all epochs among its phases"),
    ],
)
def test_not_longer(trained, cli, options, reason):
    run = trained("run", options)
    before = (run / "config.yaml").read_bytes()
    result = cli(f"train --resume {run} --epochs 4")
    assert result.code == 2
    assert reason in result.err.splitlines()[-1]
    assert f"--init {run}" in result.err
    assert (run / "config.yaml").read_bytes() == before
    assert not (run / "set-aside-1").exists()


def test_divergence(cli, no_pictures):
    line = "--model mlp --optimizer.lr 1e30 --schedule Constant --runs runs --name run --device cpu"
    result = cli(f"train {line} --batch_size 100")
    assert result.code == 1
    last = result.err.splitlines()[-1]
    assert last.startswith("layerwise train: ")
    assert "is not finite at step" in last
    assert "learning rate 1e+30" in last
    assert Run(Path("runs/run")).load("last") is None


def test_a_full_disk(trained, cli, monkeypatch):
    """While training: exit code 2 and one line; afterwards the run goes on as if nothing was."""
    straight = trained("straight")
    replace = os.replace

    def refuse(source, target):
        if "checkpoints" in str(target) and Path(target).exists():
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        result = cli(f"train --config {straight}/config.yaml --runs runs --name full")
    assert result.code == 2
    assert "No space left on device" in result.err.splitlines()[-1]
    assert Run(Path("runs/full")).load("last")["epoch"] == 1
    assert not list(Path("runs/full").rglob(".*"))
    assert cli("train --resume runs/full").code == 0
    a, b = (Path("runs") / name / "model.safetensors" for name in ("straight", "full"))
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.slow
def test_a_network_of_torchvision(cli, no_pictures, monkeypatch):
    """Its own names in the file, without those of the cut."""
    grey = data.load("digits")
    parts = [
        replace(part, images=part.images[:150], labels=part.labels[:150]).coloured()
        for part in (grey.train, grey.validation, grey.test)
    ]
    splits = type(grey)(*parts, grey.classes, "digits")
    monkeypatch.setattr("layerwise.experiment.build.load_data", lambda config, seed: splits)
    # In bf16, torch 2.14 now and then has NaN in the gradient of a 3x3 convolution on 1x1 maps.
    line = (
        "train --model torchvision --model.arch resnet18 --blocks 3 --epochs 1 --batch_size 75 "
        "--accumulate 2 --runs runs --device cpu --rule.head.width 4 --precision 32"
    )
    result = cli(line)
    assert result.code == 0, result.err
    run = Path("runs/digits-torchvision-dgl-1")
    net = torchvision.models.resnet18(num_classes=10)
    net.load_state_dict(safetensors.torch.load_file(run / "model.safetensors"))
    x, y = next(Loader(splits.test, 150, augment=Augment(), train=False).epoch(0))
    accuracy = (net.eval()(x).argmax(1) == y).double().mean().item()
    assert Run(run).metrics()[-1]["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert torch.equal(
        net.state_dict()["bn1.num_batches_tracked"], torch.tensor(2)
    )  # it was trained


def test_several_seeds(cli, no_pictures):
    """A run for each; given again, complete runs are left alone and the others continued."""
    line = "train --model mlp --blocks 2 --epochs 1 --pictures 0 --runs r --name a --batch_size 200"
    result = cli(f"{line} --seed 3,1")
    assert result.code == 0, result.err
    runs = {seed: Run.open(f"r/a-{seed}") for seed in (3, 1)}
    assert [run.config["seed"] for run in runs.values()] == [3, 1]
    assert cli(f"{line.replace('--name a', '--name b')} --seed 1").code == 0
    alone = Run.open("r/b").metrics()[0]
    again = runs[1].metrics()[0]
    assert {k: v for k, v in alone.items() if k not in ("seconds", "images_per_s")} == {
        k: v for k, v in again.items() if k not in ("seconds", "images_per_s")
    }
    (runs[1].path / "model.safetensors").unlink()
    before = runs[3].metrics()
    result = cli(f"{line} --seed [3,1,0]")
    assert result.code == 0, result.err
    assert "r/a-3: complete" in result.err
    assert runs[3].metrics() == before
    assert (runs[1].path / "model.safetensors").exists()
    assert Run.open("r/a-0").config["seed"] == 0

    result = cli("compare r/a-0 r/a-1 r/a-3 r/b --out r")
    assert result.code == 0, result.err
    table = Path("r/comparison-1/table.md").read_text()
    assert " ± " in table
    assert "| 0, 1, 3 |" in table
    assert "a (seeds 0, 1, 3)" in Path("r/comparison-1/curves.svg").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--seed 0,1", "give --name NAME, and they are called NAME-SEED"),
        ("--seed 0,x --name a", "--seed 0,x: give a whole number, or several"),
        ("--seed 1,1 --name a", "a seed is named twice"),
        ("--seed 0,-1 --name a", "--seed 0,-1: give a whole number"),
    ],
)
def test_seeds_that_cannot_be(options, said, cli):
    result = cli(f"train --model mlp --epochs 1 {options}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert said in result.err
    assert not Path("experiments").exists()


def test_seeds_of_another_experiment(cli, no_pictures):
    line = "train --model mlp --blocks 2 --epochs 1 --pictures 0 --runs r --name a --batch_size 200"
    assert cli(f"{line} --seed 0,1").code == 0
    for other in ("--optimizer.lr 0.01", "--data.labels 0.5"):
        result = cli(f"{line} --seed 0,1 {other}")
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert f"it is there already, with {other[2:6]}" in result.err
    assert "it is there already" in cli(f"{line} --seed 2,1 --optimizer.lr 0.01").err
    assert not Path("r/a-2").exists()  # all are checked before the first is trained
