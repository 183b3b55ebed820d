"""Runs over several seeds as one row: mean and standard deviation."""

from __future__ import annotations

import dataclasses

import pytest

from layerwise.costs.blocks import BlockCost, Costs
from layerwise.report.comparison import Summary, over_seeds

RUN = Summary(
    run="dgl-0",
    data="digits (no augmentation; validation 0.1)",
    model="mlp",
    rule="DGL(MLP(width=8))",
    blocks=3,
    epochs=2,
    precision="32",
    runtime="serial",
    seed=0,
    selected_epoch=2,
    test_selected=0.90,
    test_last=0.80,
    train_last=1.0,
    parameters=10,
    head_parameters=2,
    step_flops=1.5,
    step_head_flops=0.25,
    images_per_s=100.0,
)


def test_over_seeds() -> None:
    """90, 92, 97: mean 93, standard deviation sqrt((9 + 1 + 16) / 2) = sqrt(13)."""
    runs = [
        dataclasses.replace(
            RUN, run=f"dgl-{seed}", seed=seed, test_selected=share, selected_epoch=e
        )
        for seed, share, e in ((0, 0.90, 1), (1, 0.92, 2), (2, 0.97, 2))
    ]
    other = dataclasses.replace(RUN, run="bp-0", rule="Backprop", head_parameters=0)
    text = over_seeds([*runs, other])
    head, *_, first, second = text.strip().splitlines()
    assert head.startswith("All runs: ")
    assert "precision: 32" in head
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[0] == "dgl"
    assert "93.00 ± 3.61" in cells
    assert "80.00 ± 0.00" in cells
    assert cells[-1] == "0, 1, 2"
    cells = [cell.strip() for cell in second.strip("|").split("|")]
    assert cells[0] == "bp"
    assert "90.00" in cells
    assert cells[-1] == "0"


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, "serial"),
        ({"stages": None, "replicas": 1, "replay": 0}, "serial"),
        ({"stages": 1, "replicas": 2}, "2 replicas"),
        ({"stages": 3, "replicas": 2, "replay": 8}, "3 stages, 2 replicas, replay 8"),
    ],
)
def test_where_blocks_were(config: dict, wanted: str) -> None:
    named = {"model": {"name": "mlp"}, "rule": {"name": "DGL"}, "augment": {}, "seed": 0}
    rows = [{"epoch": 1, "images_per_s": 1.0}]
    costs = Costs((BlockCost("a", (1,), 1, 1, 0, 0),))
    data = {"name": "digits", "validation": 0.1}
    summary = Summary.of_metrics("run", {**named, "data": data, **config}, rows, costs)
    assert summary.cells()["runtime"] == wanted


def test_runs_that_differ_in_what_is_no_column_are_no_seeds_of_one_experiment() -> None:
    runs = [dataclasses.replace(RUN, run=f"{name}-0") for name in ("fast", "slow")]
    *_, first, second = over_seeds(runs).strip().splitlines()
    assert (first.split()[1], second.split()[1]) == ("fast", "slow")


@pytest.mark.parametrize(
    ("curriculum", "wanted"),
    [
        (None, ""),
        ({"scores": None, "anti": False}, ""),
        ({"scores": "losses", "anti": False}, "; the easiest first (0.04, x1.9 every 100)"),
        ({"scores": "losses", "anti": True}, "; the hardest first (0.04, x1.9 every 100)"),
    ],
)
def test_in_which_order_samples_came(curriculum: dict | None, wanted: str) -> None:
    config = {"model": {"name": "mlp"}, "rule": {"name": "DGL"}, "augment": {}, "seed": 0}
    config["data"] = {"name": "digits", "validation": 0.1}
    pacing = {"start": 0.04, "increase": 1.9, "every": 100}
    config["curriculum"] = None if curriculum is None else pacing | curriculum
    rows = [{"epoch": 1, "images_per_s": 1.0}]
    summary = Summary.of_metrics("run", config, rows, Costs((BlockCost("a", (1,), 1, 1, 0, 0),)))
    assert summary.data == f"digits (no augmentation; validation 0.1{wanted})"


def test_an_epoch_that_did_not_train_the_output_is_not_the_best() -> None:
    """Under a rule that trains one block after the other, those before the last one's."""
    rows = [
        {"epoch": 1, "train_loss": None, "validation_accuracy": 0.12, "test_accuracy": 0.1},
        {"epoch": 2, "train_loss": 2.0, "validation_accuracy": 0.11, "test_accuracy": 0.2},
    ]
    rows = [row | {"images_per_s": 1.0} for row in rows]
    config = {"model": {"name": "mlp"}, "rule": {"name": "Sequential"}, "augment": {}, "seed": 0}
    config["data"] = {"name": "digits", "validation": 0.1}
    summary = Summary.of_metrics("run", config, rows, Costs((BlockCost("a", (1,), 1, 1, 0, 0),)))
    assert (summary.selected_epoch, summary.test_selected) == (2, 0.2)
