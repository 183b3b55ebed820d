"""Language models from the command line: perplexity in metrics, evaluation and comparison."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import yaml

from layerwise.runs.run import Run

GPT = (
    "train --data text:alphabet.txt --data.context 8 --model gpt --model.layers 1 --model.width 8 "
    "--model.heads 2 --at classifier --batch_size 16 --epochs 2 --runs runs --device cpu"
)


@pytest.fixture(autouse=True)
def alphabet() -> None:
    Path("alphabet.txt").write_text("abcdefghij" * 200)


def test_perplexity_is_the_exponential_of_the_loss(cli, no_pictures, undrawn) -> None:
    for name, rule in (("a", "DGL"), ("b", "DirectFeedbackAlignment")):
        result = cli(f"{GPT} --rule {rule} --name {name}")
        assert result.code == 0, result.err
    rows = list(csv.DictReader(Path("runs/a/metrics.csv").read_text().splitlines()))
    assert "train_perplexity" not in rows[0]
    for row in rows:
        for part in ("validation", "test"):
            wanted = math.exp(float(row[f"{part}_loss"]))
            assert float(row[f"{part}_perplexity"]) == pytest.approx(wanted)
    assert "windows/s" in Path("runs/a/log.txt").read_text()

    result = cli("evaluate runs/a")
    assert result.code == 0, result.err
    found = json.loads(Path("runs/a/evaluation-test-last.json").read_text())
    assert (found["windows"], len(found["exits"])) == (49, 2)  # 399 of 400 characters, by eight
    for exit in found["exits"]:
        assert exit["perplexity"] == pytest.approx(math.exp(exit["loss"]))
    assert found["exits"][1]["perplexity"] == pytest.approx(float(rows[1]["test_perplexity"]))

    # FLOPs of early exits are those of a token: a part of its window's.
    result = cli("evaluate runs/a --exits true --threshold 1.1")
    assert result.code == 0, result.err
    assert "every token leaves" in result.out
    told = json.loads(Path("runs/a/exits-test-last.json").read_text())
    assert told["labels"] == 8 * 49
    for of_token, of_window in zip(told["fixed"], found["exits"], strict=True):
        assert of_token["accuracy"] == pytest.approx(of_window["accuracy"])
        assert of_token["flops"] == of_window["flops"] / 8
    (row,) = told["thresholds"]
    assert (row["shares"], row["accuracy"]) == ([0, 1], told["fixed"][1]["accuracy"])
    assert row["flops"] > max(one["flops"] for one in told["fixed"])  # the first head's, too

    result = cli("compare runs/a runs/b --out out")
    assert result.code == 0, result.err
    assert "test perplexity, last" in Path("out/comparison-1/table.md").read_text()
    (first, _) = yaml.safe_load(Path("out/comparison-1/table.yaml").read_text())
    best = min(rows, key=lambda row: float(row["validation_perplexity"]))
    assert first["selected_epoch"] == int(best["epoch"])
    assert first["perplexity_selected"] == float(best["test_perplexity"])


def test_a_known_entropy_rate_is_told(cli, no_pictures) -> None:
    options = GPT.replace("text:alphabet.txt", "markov").replace("16 --epochs 2", "128 --epochs 1")
    assert cli(f"{options} --rule LastBlock --name m").code == 0
    result = cli("evaluate runs/m --split validation")
    found = json.loads(Path("runs/m/evaluation-validation-last.json").read_text())
    assert found["entropy_rate"] < found["exits"][-1]["loss"]
    assert "nats a token" in " ".join(result.out.split())


def test_what_a_text_has_to_say(cli, no_pictures, undrawn) -> None:
    """Angles, in training and after it, and how alike blocks are; nothing about images."""
    result = cli(f"{GPT} --epochs 1 --rule FeedbackAlignment --alignment_every 50 --name fa")
    assert result.code == 0, result.err
    (first, *_) = rows = Run(Path("runs/fa")).lines("alignment.jsonl")
    assert [row["step"] for row in rows] == [0]
    assert first["angle"][0] > first["angle"][1]

    result = cli("analyze runs/fa --samples 20")
    assert (result.code, "left out" in result.err) == (0, False), result.err
    found = json.loads(Path("runs/fa/analysis-1/analysis.json").read_text())
    (of_run,) = found["runs"]
    numbers = {"angle", "ratio", "rank", "norm", "knee"}
    assert all(set(block) == {"name", *numbers} for block in of_run["blocks"])
    assert of_run["difficulty"] is None
    assert {layer["name"] for layer in of_run["feedback"]} == set(first["feedback"])
    values = found["cka"][0]["values"]
    assert [values[i][i] for i in (0, 1)] == pytest.approx([1, 1])
    assert values[0][1] == values[1][0]

    for question in ("probe", "separability", "information", "memorization", "difficulty"):
        result = cli(f"analyze runs/fa --questions alignment,{question}")
        assert (result.code, result.err.count("\n")) == (2, 1), result.err
        says = f"--questions {question}: runs/fa was trained on a text; give a run on images"
        assert says in result.err
    assert len(list(Path("runs/fa").glob("analysis-*"))) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--augment.flip true", "augment.flip"),
        ("--channels_last true", "channels_last"),
        ("--data.size 8", "images have a size; leave it out"),
        ("--data.context 3000", "no window of 3000"),
        ("--data digits --data.context null", "it takes windows of tokens"),
        ("--rule Greedy --rule.objectives Reconstruct", "which is not an image"),
    ],
)
def test_what_belongs_to_images(options: str, says: str, cli) -> None:
    result = cli(f"{GPT} {options}")
    assert result.code == 2
    assert says in " ".join(result.err.split())
    assert not Path("runs").exists()


def test_a_network_for_images(cli) -> None:
    result = cli("train --data text:alphabet.txt --model vit --runs runs")
    assert result.code == 2
    assert "the network takes images, not text; give --model gpt" in result.err


LSTM = (
    "train --data text:alphabet.txt --data.context 4 --model lstm --model.width 8 --blocks 1 "
    "--rule TruncatedBPTT --rule.carry true --batch_size 32 --eval_batch_size 8 --epochs 1 "
    "--optimizer AdamW --optimizer.lr 0.02 --runs runs --device cpu"
)


def test_a_carried_state(cli, no_pictures) -> None:
    """In training, in the evaluation after an epoch, and in that of the finished run."""
    result = cli(f"{LSTM} --name a")
    assert (result.code, "give a text with --data.contiguous true" in result.err) == (2, True)
    result = cli(f"{LSTM} --data.contiguous true --replicas 2 --name a")
    assert (result.code, "train in one process" in result.err) == (2, True)
    result = cli(f"{LSTM} --data.contiguous true --name a")
    assert result.code == 0, result.err
    (row,) = csv.DictReader(Path("runs/a/metrics.csv").read_text().splitlines())
    assert cli("evaluate runs/a").code == 0
    (exit,) = json.loads(Path("runs/a/evaluation-test-last.json").read_text())["exits"]
    assert exit["loss"] == pytest.approx(float(row["test_loss"]))
    state = Run.open(Path("runs/a")).load("last")["rule"]["_extra_state"]
    assert state.shape == (32, 2 * 8)
