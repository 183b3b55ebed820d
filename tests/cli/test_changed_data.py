"""Data that changed after a run began are refused, and the line says what changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from layerwise.experiment import resume

COMMANDS = ("train --resume {}", "evaluate {}", "analyze {} --questions extent --samples 4")


@pytest.fixture
def place() -> Path:
    """Twelve images of each of two classes."""
    place = Path("set")
    random = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (place / name).mkdir(parents=True)
        for i in range(12):
            pixels = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / name / f"{i}.png")
    return place


@pytest.fixture
def run(place, trained) -> Path:
    return trained("run", "--data folder:set --data.root cache --epochs 1 --batch_size 8")


def rename(place: Path) -> None:
    (place / "bee").rename(place / "wasp")


def add(place: Path) -> None:
    for i in range(12, 22):
        shutil.copy(place / "ant" / "0.png", place / "ant" / f"{i}.png")


def exchange(place: Path) -> None:
    Image.new("RGB", (6, 6)).save(place / "ant" / "0.png")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (rename, "the class 'bee' is now 'wasp'"),
        (add, "samples then,"),
        (exchange, "files have other names or sizes"),
    ],
)
def test_changed_data(command, change, says, place, run, cli):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    change(place)
    result = cli(command.format(run))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert f"run {run}: data folder:set changed since the run began" in result.err
    assert says in result.err
    assert "restore them, or train a new run" in result.err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("command", COMMANDS)
def test_data_that_are_restored(command, place, run, cli):
    rename(place)
    (place / "wasp").rename(place / "bee")
    os.utime(place / "bee" / "0.png", ns=(1, 1))
    assert cli(command.format(run)).code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_of_an_earlier_version_has_no_record(command, place, run, cli):
    (run / "data.json").unlink()
    exchange(place)
    assert cli(command.format(run)).code == 0


@pytest.mark.parametrize("content", ["", "[1", "{}", "[]", '{"classes": 3}', "[" * 5000, "\xff"])
def test_a_record_that_was_damaged(content, run, cli):
    (run / "data.json").write_bytes(content.encode("latin-1"))
    for command in COMMANDS:
        result = cli(command.format(run))
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "data.json cannot be read" in result.err


def test_what_is_recorded(run):
    found = json.loads((run / "data.json").read_text())
    assert found["classes"] == ["ant", "bee"]
    assert found["shape"] == [3, 6, 6]
    assert sum(found["counts"].values()) == 24
    assert found["curriculum"] is None


def test_losses_that_a_curriculum_reads_are_never_overwritten(trained, cli):
    teacher = trained("teacher", "--epochs 1")
    assert cli(f"evaluate {teacher} --split train --losses true").code == 0
    path = teacher / "losses-train-last.safetensors"
    first = path.read_bytes()
    assert cli(f"evaluate {teacher} --split train --losses true").code == 0  # the same losses
    assert not list(teacher.glob("losses-*-2.safetensors"))
    student = trained("student", f"--epochs 1 --curriculum.scores {path}")

    # The teacher is trained on: the losses are other ones.
    config = (teacher / "config.yaml").read_text()
    (teacher / "config.yaml").write_text(config.replace("epochs: 1\n", "epochs: 2\n"))
    resume(teacher)
    result = cli(f"evaluate {teacher} --split train --losses true")
    assert "losses-train-last-2.safetensors" in result.out.replace("\n", "")
    assert path.read_bytes() == first
    second = load_file(teacher / "losses-train-last-2.safetensors")
    assert not torch.equal(second["losses"], load_file(path)["losses"])
    assert cli(f"train --resume {student}").code == 0

    # Somebody else overwrites them.
    save_file(second, path)
    result = cli(f"train --resume {student}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"the scores of its curriculum, {path}, changed since the run began" in result.err


def test_losses_of_another_split_order_no_curriculum(trained, cli):
    teacher = trained("teacher", "--epochs 1")
    assert cli(f"evaluate {teacher} --split test --losses true").code == 0
    path = teacher / "losses-test-last.safetensors"
    result = cli(f"train --curriculum.scores {path} --epochs 1")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "the scores are of the test split" in result.err


@pytest.mark.parametrize("spoil", ["shorter", "type"])
def test_outcomes_of_other_data(spoil, trained, cli):
    run = trained("run", "--epochs 1 --outcomes true")
    (path,) = (run / "outcomes").iterdir()
    found = load_file(path)
    if spoil == "shorter":
        found = {name: values[:100].clone() for name, values in found.items()}
    else:
        found["right"] = found["right"].float()
    save_file(found, path)
    result = cli(f"analyze {run} --questions difficulty --samples 10")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "outcomes are of other data" in result.err


@pytest.mark.parametrize("size", [100000, 10**30, 8192])
def test_huge_sizes(size, cli):
    result = cli(f"train --model mlp --data digits --data.size {size}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"size={size}" in result.err
