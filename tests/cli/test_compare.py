"""`layerwise compare`: the table says what metrics.csv says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from layerwise.runs.run import Run


def test_table_and_pictures(trained, cli):
    a = trained("a", "--epochs 3")
    b = trained("b", "--rule Backprop --epochs 1 --data.validation 0 --seed 1")
    elsewhere = Path("other/a")
    shutil.copytree(a, elsewhere)
    result = cli(f"compare --out out {a} {b} {elsewhere}")
    assert result.code == 0, result.err
    folder = Path("out/comparison-1")
    assert {p.name for p in folder.iterdir()} == {
        "table.md",
        "table.yaml",
        "curves.png",
        "curves.svg",
        "blocks.png",
        "blocks.svg",
    }
    assert "out/comparison-1" in result.out
    svg = (folder / "curves.svg").read_text()
    assert "<svg" in svg
    found = yaml.safe_load((folder / "table.yaml").read_text())
    assert [summary["run"] for summary in found] == ["a", "b", "a"]
    for summary, path in zip(found, (a, b, elsewhere), strict=True):
        rows = Run(path).metrics()
        assert summary["epochs"] == len(rows)
        assert summary["test_last"] == rows[-1]["test_accuracy"]
        assert summary["train_last"] == rows[-1]["train_accuracy"]
        assert summary["images_per_s"] == sorted(r["images_per_s"] for r in rows)[len(rows) // 2]
        if path != b:
            best = max(rows, key=lambda r: r["validation_accuracy"])
            assert summary["selected_epoch"] == best["epoch"]
            assert summary["test_selected"] == best["test_accuracy"]
        else:
            assert summary["selected_epoch"] is None
            assert summary["test_selected"] is None
    # 64 -> 12 -> 12 -> 10; the head is 12 -> 256 -> 10.
    assert found[0]["parameters"] == 64 * 12 + 12 + 12 * 12 + 12 + 12 * 10 + 10
    assert found[0]["head_parameters"] == 12 * 256 + 256 + 256 * 10 + 10
    assert found[1]["head_parameters"] == 0
    text = (folder / "table.md").read_text()
    for path in (a, b):
        last = Run(path).metrics()[-1]
        assert f"{100 * last['test_accuracy']:.2f}" in text
        assert f"{100 * last['train_accuracy']:.2f}" in text


@pytest.mark.parametrize("lacks", ["metrics.csv", "cost.json"])
def test_a_run_that_has_not_got_far(lacks, trained, cli):
    run = trained("run", "--epochs 1")
    (run / lacks).unlink()
    result = cli(f"compare {run}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert not Path("experiments").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.csv", "epoch,loss\n1,x\n"),
        ("metrics.csv", "epoch\n1,2,3\n"),
        ("cost.json", "{"),
        ("cost.json", "3"),
        ("config.yaml", "{}"),
        ("config.yaml", "a: [1"),
    ],
)
def test_a_run_that_was_damaged(name, text, trained, cli):
    run = trained("run", "--epochs 1")
    (run / name).write_text(text)
    result = cli(f"compare {run}")
    assert (result.code, result.err.count("\n")) == (2, 1), result.err


def test_where_nothing_may_be_written(trained, cli):
    run = trained("run", "--epochs 1")
    Path("file").write_text("")
    result = cli(f"compare {run} --out file")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--out file: cannot be written: File exists" in result.err


def test_published_curves(trained, cli, undrawn):
    """The steps of an epoch, a distance in percentage points, and the files."""
    run = trained("dgl-0", "--epochs 1")
    row = Run.open(str(run)).metrics()[0]
    points = [[row["step"], 100 * row["test_accuracy"] - 1.5]]
    curves = {"title": "a study", "source": "a plot", "series": {"dgl": {"test_accuracy": points}}}
    Path("curves.json").write_text(json.dumps(curves))
    result = cli(f"compare {run} --reference curves.json")
    assert result.code == 0, result.err
    folder = Path("experiments/comparison-1")
    assert "+1.50" in (folder / "reference.md").read_text()
    assert {"reference.png", "reference.svg"} <= {f.name for f in folder.iterdir()}
    points[0][0] *= 2
    Path("curves.json").write_text(json.dumps(curves))
    result = cli(f"compare {run} --reference curves.json")
    said = " ".join(result.out.split())
    assert "no epoch of these runs ends within 2 % of a published step" in said
    assert "a study, at equal steps" not in said
    listed = said.partition("comparison-2: ")[2].split(", ")
    folder = Path("experiments/comparison-2")
    assert set(listed) == {f.name for f in folder.iterdir()} - {"table.yaml"}
    result = cli(f"compare {run} --reference original-1")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert not Path("experiments/comparison-3").exists()
