"""Starting from the weights of another run, with parts that are not trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import safetensors.torch
import torch

from layerwise.models.patches import PatchNetwork
from layerwise.runs.run import Run


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model.safetensors")


def test_from_a_run_with_frozen_parts(trained, cli, no_pictures):
    """The frozen layer keeps the other run's bits, the next starts from them, the output is new."""
    first = trained("first", "--epochs 1")
    before = tensors(first)
    sgd = "--optimizer SGD --optimizer.momentum 0 --optimizer.nesterov false"
    run = trained(
        "second",
        f"--epochs 1 --init {first} --freeze fc1 {sgd} --optimizer.lr 1e-30 --rule Backprop "
        "--optimizer.weight_decay 0",
    )
    after = tensors(run)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert "6 of 6 tensors" in (run / "log.txt").read_text()
    moved = tensors(trained("third", f"--epochs 1 --init {first} --freeze fc1 --rule Backprop"))
    for name, tensor in before.items():
        assert torch.equal(moved[name], tensor) == name.startswith("fc1"), name
    assert Run.open("runs/third").config["freeze"] == ["fc1"]
    assert cli("evaluate runs/third").code == 0


@pytest.mark.parametrize("freeze", ["conv1,conv2", "conv1,conv2,conv3,classifier"])
def test_a_frozen_module_keeps_its_statistics(freeze, cli, no_pictures):
    """BatchNorm's, also after resuming. All modules may be frozen under heads, which learn."""
    train = (
        "train --recipe demo-backprop --model.channels 4 --schedule Constant --epochs 1 "
        "--pictures 0 --device cpu --runs r --name"
    )
    assert cli(f"{train} first").code == 0
    heads = f"--rule DeepSupervision --rule.detach true --init r/first --freeze {freeze}"
    result = cli(f"{train} second {heads}")
    assert result.code == 0, result.err
    assert cli("train --resume r/second --epochs 2").code == 0
    before, after = tensors(Path("r/first")), tensors(Path("r/second"))
    still = {name for name in before if torch.equal(after[name], before[name])}
    assert still == {name for name in before if name.startswith(tuple(freeze.split(",")))}
    assert "conv2.1.running_mean" in still
    rows = Run.open("r/second").metrics()
    assert rows[1]["train_accuracy_block0"] > rows[0]["train_accuracy_block0"] + 0.1


def test_what_does_not_fit_stays_as_initialised(trained, cli):
    first = trained("first", "--epochs 1")
    run = trained("wide", f"--epochs 1 --model.layers 1 --blocks 1 --init {first} --rule Backprop")
    said = (run / "log.txt").read_text()
    assert "--init: " in said
    assert "from runs/first" in said


def test_a_run_continues_without_the_file(trained, cli, no_pictures):
    first = trained("first", "--epochs 1")
    run = trained("second", f"--epochs 1 --init {first}", fresh=True)
    (first / "model.safetensors").unlink()
    assert cli(f"train --resume {run}").code == 0
    assert cli(f"evaluate {run}").code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--init nowhere", "--init nowhere: cannot be read"),
        (f"--init {'x' * 5000}", "cannot be read"),
        ("--init .", "it holds no model.safetensors"),
        ("--init text", "--init text: cannot be read"),
        ("--init other.safetensors", "no tensor fits this network; it has fc1.1.weight"),
        ("--freeze nothing", "--freeze nothing: no such module"),
        ("--freeze fc1.0", "--freeze fc1.0: it has no parameters"),
        ("--freeze fc1,fc2,classifier --rule Backprop", "no parameter is left to train"),
    ],
)
def test_what_cannot_be_used(options, said, cli):
    Path("text").write_text("no tensors")
    safetensors.torch.save_file({"a": torch.zeros(2)}, "other.safetensors")
    result = cli(f"train --model mlp --model.layers 2 --blocks 2 --epochs 1 {options}")
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert said in result.err
    assert not Path("experiments").exists()


def test_dictionaries_are_made_once_and_only_at_the_start(cli, no_pictures, monkeypatch):
    """`fit_to` sees training images where a training starts, also behind adapters, and never where
    a checkpoint is loaded."""
    fits = []
    fit = PatchNetwork.fit_to
    kept = lambda n, x, seed: (fits.append(len(x)), fit(n, x, seed))  # noqa: E731
    monkeypatch.setattr(PatchNetwork, "fit_to", kept)
    train = (
        "train --model patches --model.patches 8 --model.sizes 3 --model.pools 2 --model.strides 1 "
        "--model.kernel_size 2 --model.bottleneck 4 --epochs 1 --rule Backprop --blocks 1 "
        "--batch_size 600 --pictures 0 --device cpu --runs r --name"
    )
    assert cli(f"{train} a").code == 0
    assert fits == [512]
    for line in ("evaluate r/a", "train --resume r/a"):
        assert cli(line).code == 0
    assert fits == [512]
    refused = cli(f"{train} b --lora 1{30 * '0'}")
    assert refused.code == 2
    assert "give a rank of at least 1 and at most 10000, or null" in refused.err
    if importlib.util.find_spec("peft"):
        assert cli(f"{train} b --lora 2").code == 0
        a, b = tensors(Path("r/a")), tensors(Path("r/b"))
        assert torch.equal(a["layer1.weight"], b["layer1.weight"])
