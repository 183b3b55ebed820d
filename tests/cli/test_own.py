"""Code of one's own: by dotted path and as entry points; what is never imported."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import yaml

from layerwise.data import Images
from layerwise.data.sources.given import parts_of
from layerwise.errors import InputError
from layerwise.experiment import own
from layerwise.experiment.build import build
from layerwise.experiment.registry import find
from layerwise.runs.run import Run
from layerwise.trainer import load_evaluated

MODULE = '''
import torch
import layerwise as lw
from torch import nn


def net(shape, num_classes, width: int = 16):
    """My network."""
    size = shape[0] * shape[1] * shape[2]
    first = nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU())
    return nn.Sequential(first, nn.Linear(width, num_classes))


class MyRule(lw.rules.DGL):
    """My rule."""


class Nameless:
    """No network."""


class MyHead(lw.heads.Linear):
    """My head."""


def brightness(samples: int = 90, seed: int = 7, outputs: int = 1):
    y = torch.rand(samples, outputs, generator=torch.Generator().manual_seed(seed))
    x = torch.rand(samples, 8, 8, generator=torch.Generator().manual_seed(0)) * 50
    return {"train": ((x + 200 * y[:, :1, None]).byte(), y)}


def cubes(scores, y, power: float = 3.0):
    return (scores - y).abs().pow(power).mean()


def halving(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def adam(parameters, lr: float = 0.01):
    return torch.optim.Adam(parameters, lr)


def broken(shape, num_classes):
    return {}["layers"]


def dataset():
    y = torch.arange(120) % 3
    x = torch.rand(120, 8, 8, generator=torch.Generator().manual_seed(0)) * 90
    return {"train": ((x + 50 * y[:, None, None]).byte(), y)}
'''
TRAIN = (
    "train --rule mine.MyRule --rule.head mine.MyHead --model mine.net --data mine.dataset "
    "--optimizer torch.optim.Adafactor --optimizer.lr 0.05 --schedule Constant --blocks 2 "
    "--batch_size 32 --pictures 0 --device cpu --runs r --name a --epochs "
)
REAL = "--data mine.brightness --criterion MSELoss"
LR = "torch.optim.lr_scheduler"


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """A module in the current folder; nothing is trusted."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MODULE)
    Path("dangerous.py").write_text("open('imported', 'w').close()\ndef net(): pass\n")
    monkeypatch.setattr(own, "_trusted", set())
    monkeypatch.setattr(own, "_everything", False)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def forget(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(own, "_trusted", set())
    monkeypatch.setattr(own, "_everything", False)


def test_every_kind_by_its_path(cli, no_pictures, monkeypatch):
    """Trained, recorded, continued and measured; to the bits of a run without interruption."""
    result = cli(TRAIN + "2")
    assert result.code == 0, result.err
    config = yaml.safe_load(Path("r/a/config.yaml").read_text())
    assert config["rule"] == {
        "name": "mine.MyRule",
        "head": {"name": "mine.MyHead", "pool": 2, "features": None, "bias": True, "fixed": False},
    }
    assert config["model"] == {"name": "mine.net", "width": 16}
    assert config["optimizer"]["name"] == "torch.optim.Adafactor"
    assert config["optimizer"]["lr"] == 0.05
    forget(monkeypatch)
    for command in ("evaluate r/a", "train --resume r/a"):
        result = cli(command)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "code outside layerwise" in result.err
        assert "--trust true" in result.err
    assert cli("evaluate r/a --trust true").code == 0
    assert cli("train --resume r/a --trust").code == 0


def test_a_criterion_with_real_labels(cli, no_pictures, monkeypatch):
    """Options of functions of one's own reach them; heads and the last block have the criterion;
    the run is measured, compared and continued."""
    result = cli(
        "train --model mine.net --data mine.brightness --data.samples 100 --blocks 2 --pictures 0 "
        "--criterion mine.cubes --criterion.power 4 --optimizer mine.adam --optimizer.lr 0.02 "
        "--schedule mine.halving --batch_size 24 --device cpu --runs r --name a --epochs 2"
    )
    assert result.code == 0, result.err
    assert "accuracy" not in result.err
    run = Run.open("r/a")
    assert (run.config["data"]["samples"], run.config["data"]["outputs"]) == (100, 1)
    assert run.config["criterion"] == {"name": "mine.cubes", "power": 4.0}
    rows = run.metrics()
    assert [row["lr"] for row in rows] == [0.02, 0.01]
    own.trust_everything()
    experiment = build(run.config)
    splits, rule = experiment.splits, experiment.rule
    load_evaluated(rule, run.load("last"))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 100
    x, y = next(experiment.loaders(torch.device("cpu"), evaluation=True)["test"].epoch(0))
    head, last = rule.eval().exits(x)
    for scores, name in ((head, "test_loss_block0"), (last, "test_loss")):
        assert rows[-1][name] == pytest.approx((scores - y).pow(4).mean().item(), rel=1e-5)
    assert rows[-1]["test_accuracy"] is None
    forget(monkeypatch)
    result = cli("evaluate r/a --trust")
    assert result.code == 0, result.err
    result = json.loads(Path("r/a/evaluation-test-last.json").read_text())
    assert result["criterion"] == "mine.cubes"
    found = result["exits"][-1]
    assert found["loss"] == pytest.approx(rows[-1]["test_loss"], rel=1e-5)
    assert found["accuracy"] is None
    assert cli("compare r/a").code == 0
    table = Path("experiments/comparison-1/table.md").read_text()
    assert f"{rows[-1]['test_loss']:.3f}" in table
    for command in ("analyze r/a --questions probe", "labels r/a"):
        result = cli(f"{command} --trust")
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "labels that are real numbers" in result.err
    assert cli("train --resume r/a --epochs 3 --trust").code == 0
    assert Run.open("r/a").metrics()[-1]["lr"] == 0.005


def test_several_classes_at_once(cli, no_pictures):
    result = cli(
        "train --model mine.net --data mine.brightness --data.outputs 3 --blocks 2 --pictures 0 "
        "--batch_size 20 --criterion torch.nn.BCEWithLogitsLoss --optimizer torch.optim.Muon "
        "--schedule torch.optim.lr_scheduler.MultiStepLR --schedule.milestones 1,2 --runs r "
        "--name a --device cpu --epochs 1"
    )
    assert result.code == 0, result.err
    config = Run.open("r/a").config
    assert config["criterion"] == {"name": "BCEWithLogitsLoss"}
    assert config["optimizer"]["name"] == "torch.optim.Muon"
    assert config["optimizer"]["lr"] == 0.001
    assert config["schedule"]["milestones"] == [1, 2]
    assert 0 < Run.open("r/a").metrics()[0]["test_loss"] < 1


def test_a_config_does_not_import(cli, monkeypatch):
    """A path in a config file runs nothing, also if the command line names another one."""
    Path("config.yaml").write_text("model: {name: dangerous.net}\n")
    for more in ("", " --rule mine.MyRule", " --trust false"):
        result = cli(f"train --config config.yaml{more}")
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "dangerous.net: a config names code outside layerwise" in result.err
        assert not Path("imported").exists()
    cli("train --config config.yaml --trust")
    assert Path("imported").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--rule mine.net", "is not a subclass of layerwise.rules.base.rule.Rule"),
        ("--rule mine.Nothing", "cannot be imported: module 'mine' has no attribute 'Nothing'"),
        ("--rule nowhere.Rule", "cannot be imported: No module named 'nowhere'"),
        ("--optimizer torch.optim.LBFGS", "LBFGS: it cannot step with a gradient alone"),
        ("--optimizer mine.broken", "optimizer broken: broken() missing 1 required"),
        ("--model mine.broken", "mine.broken: it failed with KeyError: 'layers' in /"),
        ("--data mine.broken", "data mine.broken: it failed with TypeError: broken() missing 2"),
        (f"{REAL} --label_smoothing 0.1", "MSELoss contradicts --label_smoothing 0.1"),
        (f"{REAL} --outcomes true", "neither right nor wrong"),
        (f"{REAL} --data.random_labels 1", "only classes can be drawn at random"),
        (f"{REAL} --data.contiguous true", "mine.brightness has no such parameter"),
        ("--data mine.brightness", "give --criterion MSELoss, or BCEWithLogitsLoss"),
        ("--model mlp --criterion MSELoss", "of scores (3, 10) and torch.int64 labels (3,) it"),
        (
            "--model mlp --criterion CrossEntropyLoss --data.labels 0.1",
            "of a batch whose labels are all missing (-100) it gives nan; give cross_entropy",
        ),
        ("--criterion MSELos", "no such criterion; did you mean 'MSELoss'?"),
        ("--criterion mine.net", "--criterion mine.net: of scores"),
        (
            f"--schedule {LR}.StepLR",
            f"argument: 'step_size'; `layerwise train --schedule {LR}.StepLR --help` shows its "
            "options; or give another schedule, such as Cosine",
        ),
        (
            "--optimizer torch.optim.Adam --optimizer.lr -1",
            "optimizer Adam: Invalid learning rate: -1.0; `layerwise train --optimizer "
            "torch.optim.Adam --help` shows its options; or give another optimizer, such as AdamW",
        ),
        (f"--schedule {LR}.ReduceLROnPlateau", "argument: 'metrics'"),
        (f"--schedule {LR}.LambdaLR", "argument: 'lr_lambda'"),
        ("--schedule mine.net", "schedule net: net() missing 1 required"),
        ("--model mine.Nameless", "--model mine.Nameless: it takes none of the arguments"),
        ("--optimizer mine.MyRule", "or of torch.optim.Optimizer"),
        ("--rule.head mine.MyRule", "is not a subclass of layerwise.heads.head.Head"),
        ("--data mine.net", "data mine.net:"),
        ("--trust=maybe", "--trust maybe: give true or false"),
        ("--model mine.net --model.depth 3", "--model.depth"),
    ],
)
def test_what_cannot_be_used(options, said, cli):
    result = cli(f"train {options}")
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert said in result.err


def test_entry_points(cli, no_pictures, monkeypatch):
    """An installed package registers names, which need no trust: who installed it did trust it."""
    monkeypatch.syspath_prepend(Path.cwd())
    points = [EntryPoint("mine", "mine:MyRule", "layerwise.rule")]
    monkeypatch.setattr(own, "entry_points", lambda group: [p for p in points if p.group == group])
    name, thing = find("rule", "mine")
    assert (name, thing.__name__) == ("mine", "MyRule")
    assert own.registered_names("rule") == ["mine"]
    with pytest.raises(InputError, match="no such model"):
        find("model", "mine")
    result = cli(
        "train --rule mine --model mlp --epochs 1 --blocks 2 --pictures 0 --runs r --name b"
    )
    assert result.code == 0, result.err
    assert Run.open("r/b").config["rule"]["name"] == "mine"


def test_the_forms_of_a_data_set():
    """Grey, channels first and last; classes by number if they have no names."""
    y = [0, 1, 2, 0]
    grey = torch.randint(256, (4, 8, 8), dtype=torch.uint8)
    parts = parts_of({"train": (grey, y), "test": Images(grey[..., None], torch.tensor(y))})
    assert torch.equal(parts.train.images, grey[..., None])
    assert parts.classes == ("0", "1", "2")
    assert parts.validation is None
    first = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    made = parts_of({"train": (first.numpy(), y), "classes": ["a", "b", "c"]})
    assert torch.equal(made.train.images, first.permute(0, 2, 3, 1))
    assert made.classes == ("a", "b", "c")
    for wrong, said in (
        (3, "it gives int"),
        ({"train": (grey.float(), y)}, "images are torch.float32"),
        ({"train": grey}, r"train: Tensor; give \(images, labels\)"),
        ({"train": (grey, y), "holdout": 1}, "it gives holdout"),
    ):
        with pytest.raises(InputError, match=said):
            parts_of(wrong)


def test_trust_in_python():
    with pytest.raises(InputError, match=r"layerwise.experiment.trust\('mine.MyRule'\)"):
        find("rule", "mine.MyRule")
    own.trust("mine.MyRule")
    assert find("rule", "mine.MyRule")[1].__name__ == "MyRule"
