"""`layerwise analyze`: what it writes, and that it leaves a run as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from layerwise.analysis import feedback_angles
from layerwise.data import Curriculum, read_scores
from layerwise.experiment.build import build
from layerwise.report.pictures import TITLE
from layerwise.runs.run import Run

WATCHED = "--alignment_every 3 --outcomes true"
QUICK = "--samples 200 --epochs 1"


def _content(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file() and "analysis-" not in str(p)]
    return {str(p): sha256(p.read_bytes()).hexdigest() for p in files}


def test_one_run(trained, cli):
    run = trained("dgl", f"{WATCHED} --data.random_labels 0.5")
    before = _content(run)
    result = cli(f"analyze {run} {QUICK}")
    assert result.code == 0, result.err
    assert _content(run) == before
    folder = run / "analysis-1"
    found = json.loads((folder / "analysis.json").read_text())
    assert (found["split"], found["samples"], found["data"]) == ("test", 200, "digits")
    (of_run,) = found["runs"]
    assert [block["name"] for block in of_run["blocks"]] == ["fc1", "fc2"]
    first, last = of_run["blocks"]
    for block in (first, last):
        for share in ("probe", "separability", "memorized"):
            assert 0 <= block[share] <= 1
        assert block["label"] < 2.31  # log 10
        assert block["reconstruction"] > 0
        assert 1 < block["rank"] < 500
        assert block["norm"] > 0
        assert 1 <= block["knee"] < 500
        assert 0 < block["correlation"] < block["strongest"] < 1
    assert 0 < first["angle"] < 180
    assert (last["angle"], last["ratio"]) == (0, 1)
    (similar,) = found["cka"]
    assert [similar["values"][i][i] for i in (0, 1)] == pytest.approx([1, 1])
    for name in ("blocks", "alignment", "cka", "difficulty"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 300
    for text in ("probe", "nats", "degrees", "0 fc1", "analysis-1", "never learned", "rank"):
        assert text in result.out

    # Difficulty: of every training image, and an order for a curriculum.
    count = of_run["difficulty"]["samples"]
    tensors = load_file(folder / "difficulty.safetensors")
    epochs = [load_file(run / f"outcomes/epoch-00{e}.safetensors") for e in (1, 2)]
    assert {len(t) for t in tensors.values()} == {count}
    wanted = (epochs[0]["right"].double() + epochs[1]["right"]) / 2
    assert torch.equal(tensors["consistency"], wanted)
    assert torch.equal(tensors["losses"], (epochs[0]["losses"] + epochs[1]["losses"]) / 2)
    # The last epoch's accuracy is that of `evaluate`.
    assert cli(f"evaluate {run} --split train").code == 0
    evaluation = json.loads((run / "evaluation-train-last.json").read_text())
    accuracy = evaluation["exits"][1]["accuracy"]
    assert epochs[1]["right"].double().mean().item() == pytest.approx(accuracy)
    splits = build(Run(run).config).splits
    scores = read_scores(folder / "difficulty.safetensors", splits)
    assert len(Curriculum(scores)) == count
    other = replace(splits.train, labels=splits.train.labels.flip(0))
    with pytest.raises(ValueError, match="the scores are of other images"):
        read_scores(folder / "difficulty.safetensors", replace(splits, train=other))

    again = cli(f"analyze {run} --questions probe {QUICK}")
    assert again.code == 0
    assert sorted(p.name for p in (run / "analysis-2").iterdir()) == [
        "analysis.json",
        "blocks.png",
    ]


def test_two_runs(trained, cli, undrawn):
    a = trained("a", f"--epochs 1 {WATCHED} --rule Backprop")
    b = trained("b", "--epochs 1 --rule LastBlock")
    before = _content(b)
    result = cli(f"analyze {a} {b} --questions cka,alignment {QUICK} --split validation")
    assert result.code == 0, result.err
    assert _content(b) == before
    assert not list(b.glob("analysis-*"))
    found = json.loads((a / "analysis-1/analysis.json").read_text())
    assert [(c["rows"], c["columns"]) for c in found["cka"]] == [
        ("a", "a"),
        ("b", "b"),
        ("a", "b"),
    ]
    assert [block["angle"] for block in found["runs"][0]["blocks"]] == [0, 0]
    assert [block["angle"] for block in found["runs"][1]["blocks"]] == [None, 0]
    assert "probe" not in found["runs"][0]["blocks"][0]


def test_filters(trained, cli):
    """The runs' own pictures of their last epoch, one below another."""
    options = "--model basic_cnn --model.channels 4 --model.hidden 8 --blocks 2 --epochs 1"
    rows = []
    for name in ("dgl", "bp"):
        rule = "Backprop" if name == "bp" else "DGL"
        more = f"--rule {rule} --batch_size 500 --device cpu --runs runs --name {name}"
        assert cli(f"train {options} {more}").code == 0
        with Image.open(f"runs/{name}/pictures/epoch-001-filters.png") as picture:
            rows.append(np.asarray(picture)[TITLE:])
    trained("mlp", "--epochs 1")
    result = cli(f"analyze runs/dgl runs/bp runs/mlp --questions filters {QUICK}")
    assert result.code == 0, result.err
    assert "left out of filters: runs/mlp: the first layer is no convolution" in result.err
    folder = Path("runs/dgl/analysis-1")
    assert sorted(p.name for p in folder.iterdir()) == ["analysis.json", "filters.png"]
    with Image.open(folder / "filters.png") as picture:
        both = np.asarray(picture)
    height = len(both) // 2
    for k, row in enumerate(rows):
        shown = both[k * height + TITLE : k * height + TITLE + len(row)]
        wide = min(shown.shape[1], row.shape[1])  # titles of another length
        assert np.array_equal(shown[:, :wide], row[:, :wide])
    assert not np.array_equal(rows[0], rows[1])


def test_the_way_back(trained, cli, undrawn):
    """The signs of the weights are near them: as vectors, sum |w| / sqrt(n sum w^2) apart."""
    run = trained("signs", "--epochs 1 --rule SignSymmetry")
    result = cli(f"analyze {run} --questions feedback {QUICK}")
    assert result.code == 0, result.err
    found = json.loads((run / "analysis-1/analysis.json").read_text())["runs"][0]["feedback"]
    weights = load_file(run / "model.safetensors")
    assert found
    for layer in found:
        (name,) = (n for n in weights if n.endswith(layer["name"].split(".", 1)[1]))
        w = weights[name]
        cosine = w.abs().sum() / (w.norm() * w.numel() ** 0.5)
        assert layer["to_weight"] == pytest.approx(torch.rad2deg(cosine.acos()).item(), abs=1e-3)
    assert (run / "analysis-1/feedback.png").exists()
    assert "angle of feedback" in result.out


def test_the_way_back_in_training(trained, cli, undrawn):
    """At the first step it is that of the weights that a run begins with. Magnitudes that are drawn
    for every batch are drawn for the measurement alone."""
    options = "--epochs 1 --rule SignSymmetry"
    run = trained("signs", f"{options} --alignment_every 4")
    rows = Run(run).lines("alignment.jsonl")
    assert [row["step"] for row in rows] == [0, 4]
    begun = feedback_angles(build(Run(run).config).rule)
    assert rows[0]["feedback"] == pytest.approx(begun, abs=1e-6)
    assert rows[1]["feedback"].keys() == begun.keys()
    assert rows[1]["feedback"] != rows[0]["feedback"]
    assert (run / "curves/feedback.png").exists()

    drawn = f"{options} --rule.random_magnitude true --rule.redraw true"
    plain, seen = trained("plain", drawn), trained("seen", f"{drawn} --alignment_every 1")
    weights = [load_file(of / "model.safetensors") for of in (plain, seen)]
    assert all(torch.equal(weights[0][name], t) for name, t in weights[1].items())

    result = cli(f"analyze {run} {plain} --questions feedback {QUICK}")
    assert result.code == 0, result.err
    assert sorted(p.name for p in (run / "analysis-1").iterdir()) == [
        "analysis.json",
        "feedback-training.png",
        "feedback.png",
    ]


def test_what_is_recorded_changes_nothing(trained, undrawn):
    """From the command line, too: the same network, and every third step's angles."""
    plain, seen = trained("plain"), trained("seen", WATCHED)
    weights = [load_file(run / "model.safetensors") for run in (plain, seen)]
    assert all(torch.equal(weights[0][name], t) for name, t in weights[1].items())
    rows = Run(seen).lines("alignment.jsonl")
    assert [row["step"] for row in rows] == [0, 3, 6, 9]
    assert all(row["ratio"][1] == 1 for row in rows)
    assert not any("feedback" in row for row in rows)  # DGL has no other way back
    assert not (plain / "alignment.jsonl").exists()
    assert not (plain / "outcomes").exists()
    assert (seen / "curves/alignment.png").exists()


def test_a_run_that_cannot_answer_is_left_out(trained, cli, undrawn):
    """Where a question is named, a line says so; the others answer. Nor are runs held against each
    other on other images, or on the same under other labels."""
    random = trained("random", "--epochs 1 --data.random_labels 1")
    trained("toy", "--epochs 1 --data hierarchical --data.size 8")
    trained("true", "--epochs 1")
    line = "analyze runs/random runs/toy runs/true --questions memorization,cka"
    result = cli(f"{line} --samples 50 --split train")
    assert result.code == 0, result.err
    why = "was trained on true labels; train one with --data.random_labels 1"
    assert result.err.splitlines() == [
        f"left out of memorization: runs/toy {why}",
        f"left out of memorization: runs/true {why}",
        "left out of cka: random and toy, whose samples or labels differ (50 images of digits; "
        "50 images of hierarchical)",
        "left out of cka: random and true, whose samples or labels differ (50 images of digits; "
        "50 images of digits)",
    ]
    found = json.loads((random / "analysis-1/analysis.json").read_text())
    kept = [["memorized" in block for block in run["blocks"]] for run in found["runs"]]
    assert kept == [[True, True], [False, False], [False, False]]
    pairs = [(c["rows"], c["columns"]) for c in found["cka"]]
    assert pairs == [("random", "random"), ("toy", "toy"), ("true", "true")]


def test_what_cannot_be_answered(trained, cli):
    run = trained("run", "--epochs 1 --data.validation 0")
    trained("toy", "--epochs 1 --data hierarchical --data.size 8")
    (run / "outcomes").mkdir()
    (run / "outcomes/epoch-001.safetensors").write_bytes(b"no tensors")
    for line, says in (
        (f"{run} --checkpoint best", "there is: last"),
        (f"{run} --split validation", "no such split"),
        (f"{run} --device cuda:5", "no such device"),
        (f"runs/toy {run} --questions feedback", "feedback: runs/toy: DGL has no feedback matrix"),
        (f"{run} {run}", "give every run once"),
        (f"{run} --samples 1", "give 2 or more"),
        (f"{run} --questions difficulty", "outcomes cannot be read"),
        ("runs/toy --questions feedback", "give a run of FeedbackAlignment"),
        ("runs/toy --questions difficulty", "train one with --outcomes true"),
        ("runs/toy --questions memorization", "train one with --data.random_labels 1"),
    ):
        result = cli(f"analyze {line}")
        assert (result.code, result.err.count("\n")) == (2, 1), result.err
        assert says in result.err
    assert not list(run.glob("analysis-*"))
