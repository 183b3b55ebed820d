"""A search over options, the same for every rule."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from layerwise.runs.metrics import selected_by
from layerwise.runs.run import Run
from layerwise.trainer import Trainer

SWEEP = (
    "sweep --model mlp --model.layers 1 --model.width 8 --blocks 2 --epochs 2 --batch_size 400 "
    "--pictures 0 --device cpu --precision 32 --runs runs --name {} --search.rule DGL,Backprop "
    "--search.optimizer.lr "
)


def options(folder: str) -> dict[str, tuple]:
    """The searched options of each trial, and what it reached."""
    found = {}
    for path in sorted(Path("runs", folder).glob("*-*")):
        run = Run.open(path)
        lr, width = run.config["optimizer"]["lr"], run.config["model"]["width"]
        found[path.name] = lr, width, max(map(selected_by, run.metrics()))
    return found


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(cli, no_pictures, monkeypatch):
    """To the same trials and the same best ones; every rule has the same options."""
    pytest.importorskip("optuna")
    search = [*SWEEP.split(), "1e-3..1 log", "--search.model.width", "4..8", "--sampler", "random"]

    def sweep(name, trials):
        return cli(*(w.format(name) for w in search), "--trials", str(trials))

    assert sweep("straight", 2).code == 0
    finish, left = Trainer._finish_step, [11]

    def dies(self):
        finish(self)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_finish_step", dies)
        assert sweep("cut", 1).code == 130
    assert sweep("cut", 1).code == 0
    assert len(options("cut")) == 2
    result = sweep("cut", 2)
    assert result.code == 0, result.err
    straight = options("straight")
    assert options("cut") == straight
    assert list(straight) == ["Backprop-0", "Backprop-1", "DGL-0", "DGL-1"]
    for n in range(2):
        assert straight[f"DGL-{n}"][:2] == straight[f"Backprop-{n}"][:2]
        assert 1e-3 <= straight[f"DGL-{n}"][0] <= 1
        assert straight[f"DGL-{n}"][1] in range(4, 9)
    table = Path("runs/cut/table.md").read_text()
    for rule in ("DGL", "Backprop"):
        n = max(range(2), key=lambda n: straight[f"{rule}-{n}"][2])
        lr, width, score = straight[f"{rule}-{n}"]
        assert f"| {rule} | 2 | {rule}-{n} | {100 * score:.2f} % |" in table
        assert f"| {lr:.4g} | {width} |" in table
    result = cli(*(w.format("cut") for w in search), "--epochs", "3")
    assert "runs/cut: it was begun with options" in result.err


def test_trials_that_diverge(cli, no_pictures):
    pytest.importorskip("optuna")
    result = cli(
        f"{SWEEP.format('s')} 1e30,0.1 --schedule Constant --trials 2 --search_seed 1 --epochs 1"
    )
    assert result.code == 0, result.err
    best = [line.split(" | ")[1:3] for line in Path("runs/s/table.md").read_text().splitlines()]
    assert ["2, 1 diverged", "Backprop-1"] in best or ["2, 1 diverged", "Backprop-0"] in best
    assert yaml.safe_load(Path("runs/s/sweep.yaml").read_text())["search"]["rule"] == "DGL,Backprop"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--search.optimizer.lr 1..0", "give the smaller end first"),
        ("--search.optimizer.lr 0..1_log", "give the smaller end first, both above 0"),
        ("--search.optimizer.lr 3", "give a range, 1e-4..1e-1 log, or different values"),
        ("--search.optimizer.lr 1,1", "or different values"),
        ("--search.optimizer.lr 0.0..1", "SGD(lr=0.0): give a positive number"),
        ("--search.optimizer.lrr 1..2", "did you mean '--optimizer.lr'?"),
        ("--search.epochs 0..2", "--epochs 0: give at least 1"),
        ("--search.batch_size 64,5000 --model mlp", "the set holds 1294 images"),
        ("--search.epochs 0.5..2", "--epochs 0.5: give a whole number"),
        ("--search.rule 1..2", "--search.rule: give names"),
        ("--search.rule DGL,Nope --search.epochs 1..2", "no such rule"),
        ("--search.epochs 1..2 --trials 0", "--trials 0: give at least 1"),
        ("--search.epochs 1..2 --resume r", "--resume: the same sweep command"),
        ("--search.epochs 1..2 --sampler grid", "--sampler grid: give tpe or random"),
        ("--epochs 2", "nothing is searched"),
        ("--search.name a,b", "--search.name: no option of a training"),
        (
            "--search.epochs 1..2 --data.validation 0",
            "no validation split, which chooses among trials",
        ),
    ],
)
def test_what_cannot_be_searched(words, said, cli):
    result = cli("sweep", "--name", "s", *(w.replace("_log", " log") for w in words.split()))
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert said in result.err
    assert not Path("experiments").exists()


def test_without_a_name(cli):
    assert "give --name NAME" in cli("sweep --search.epochs 1..2").err


def test_without_optuna(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = cli(f"{SWEEP.format('s')} 0.1..1")
    assert "pip install 'layerwise[sweep]'" in result.err
    assert not Path("experiments").exists()
