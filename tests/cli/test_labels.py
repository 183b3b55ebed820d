"""`--data.labels`, teachers on the command line, and `layerwise labels`."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from layerwise.experiment.build import build
from layerwise.runs.run import Run

FEW = "--data.labels 0.1"
PLAIN = "--optimizer SGD --optimizer.momentum 0 --optimizer.nesterov false"


def test_a_run_with_few_labels(trained, cli):
    """Metrics count the labels that are there; the data are recorded; probes skip the others."""
    run = trained("few", f"{FEW} --rule Backprop --optimizer.lr 0.3")
    rows = Run.open(run).metrics()
    made = build(Run.open(run).config)
    labelled = int((made.splits.train.labels >= 0).sum())
    assert labelled == 129
    hits = rows[-1]["train_accuracy"] * labelled  # batches of 200 leave 94 images out
    assert 0 < rows[-1]["train_loss"] < 2.4
    assert hits <= labelled
    assert json.loads((run / "data.json").read_text())["counts"]["train"] == 1294
    assert cli(f"analyze {run} --questions probe --epochs 1").code == 0
    assert cli(f"evaluate {run} --split train --losses true").code == 0
    scores = f"--curriculum.scores {run}/losses-train-last.safetensors"
    result = cli(f"train --model mlp {FEW} {scores}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "contradicts --data.labels: images without a label" in result.err
    assert "give every share once" in cli(f"labels {run} --shares 0.1,0.1").err


@pytest.mark.parametrize("adapters", ["", "--lora 2"])
def test_a_student_of_a_run(adapters, trained, cli):
    """With a learning rate of nearly zero the student stays the teacher that it starts from, and
    its loss is zero; the teacher has no part in the student's files."""
    teacher = trained(f"teacher{adapters[-1:]}", f"--rule Backprop {adapters}")
    run = trained(
        f"student{adapters[-1:]}",
        f"{FEW} {adapters} --blocks 1 --rule Greedy --rule.objectives Distill "
        f"--rule.objectives.teacher {teacher} --init {teacher} --optimizer.lr 1e-30 {PLAIN} "
        "--epochs 1",
        fresh=True,
    )
    row = Run.open(run).metrics()[-1]
    assert row["train_loss"] == pytest.approx(0, abs=1e-6)
    before, after = (load_file(r / "model.safetensors") for r in (teacher, run))
    assert before.keys() == after.keys()
    assert not any("teacher" in key for key in load_file(run / "checkpoints/last.safetensors"))
    teacher.rename("runs/elsewhere")  # only training asks it
    assert cli(f"evaluate {run}").code == 0
    assert cli(f"analyze {run} --questions probe --epochs 1").code == 0
    result = cli(f"analyze {run} --questions alignment")
    assert result.code == 2
    assert f"teacher {teacher}: run {teacher}: is not a folder" in " ".join(result.err.split())
    assert cli(f"train --resume {run} --epochs 2").code == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("", "Distill(teacher=None): give a trained network"),
        ("--rule.objectives.teacher nowhere", "teacher nowhere: run nowhere: is not a folder"),
        ("--rule.objectives.teacher runs/teacher --augment.normalize none", "--augment.normalize"),
    ],
)
def test_teachers_that_cannot_be_used(options, says, trained, cli):
    trained("teacher", "--rule Backprop")
    network = "--model mlp --model.layers 2 --model.width 12 --blocks 1"
    result = cli(f"train {network} --rule Greedy --rule.objectives Distill {options}")
    assert result.code == 2
    assert says in " ".join(result.err.split())


def test_probes(trained, cli, undrawn):
    """A row for each share and draw, of the untrained network too; all labels of a share count."""
    run = trained("dgl")
    result = cli(f"labels {run} --shares 0.05,1 --draws 2 --epochs 1 --block 0")
    assert result.code == 0, result.err
    found = json.loads((run / "labels-1" / "labels.json").read_text())
    assert found["how"] == "probe"
    rows = found["rows"]
    assert [(r["run"], r["share"], r["draw"], r["labels"]) for r in rows] == [
        (name, share, draw, labels)
        for name in ("dgl, untrained", "dgl")
        for share, labels in ((0.05, 65), (1.0, 1294))
        for draw in (0, 1)
    ]
    assert all(r["accuracy"] == r["blocks"][0] and len(r["blocks"]) == 2 for r in rows)
    assert rows[0]["accuracy"] != rows[1]["accuracy"]
    assert (run / "labels-1" / "labels.png").exists()
    assert "± " in result.out


def test_finetuning_starts_from_all_blocks_but_the_last(trained, cli, undrawn):
    """With a learning rate of nearly zero the weights are those that it started from."""
    run = trained("dgl", PLAIN)
    given = f"labels {run} --how finetune --shares 0.05 --epochs 1 --untrained false --lr 1e-30"
    result = cli(given)
    assert result.code == 0, result.err
    tuned = Run.open(run / "labels-1" / "dgl-0.05-0")
    before, after = (load_file(r / "model.safetensors") for r in (run, tuned.path))
    same = {name: torch.equal(after[name], tensor) for name, tensor in before.items()}
    blocks = build(Run.open(run).config).rule.blocks
    assert blocks.names[-1] == "fc2"
    assert {name for name, equal in same.items() if equal} == {n for n in same if "fc1" in n}
    assert tuned.config["data"]["labels"] == 0.05
    assert not tuned.config["data"]["unlabelled"]
    (row,) = json.loads((run / "labels-1" / "labels.json").read_text())["rows"]
    assert (row["labels"], row["accuracy"]) == (65, tuned.metrics()[-1]["test_accuracy"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--how guess", "--how guess: give probe or finetune"),
        ("--shares 0", "--shares [0.0]: give shares above 0 to 1"),
        ("--shares 1,0.001", "--shares 0.001: 1 of the 1,294 training images of "),
        ("--shares 1,0.001", "less than one of each of 10 classes; give at least 0.00781"),
        ("--how finetune --lr -1", "SGD(lr=-1.0)"),
        ("--how finetune --device cuda:9", "cuda:9"),
        ("--shares []", "--shares []: give shares"),
        ("--draws 0", "--draws 0: give 1 or more"),
        ("--block 7", "has 2 blocks; give less"),
        ("runs/dgl", "give every run once"),
    ],
)
def test_what_cannot_be_measured(options, says, trained, cli):
    run = trained("dgl")
    result = cli(f"labels {run} {options}")
    assert result.code == 2
    assert says in result.err
    assert not list(run.glob("labels-*"))
