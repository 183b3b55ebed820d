"""Curves: the lines hold the rows' values, whatever the rows hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from layerwise.report import curves


def row(epoch: int, **values: float | None) -> dict[str, float | None]:
    made: dict[str, float | None] = {"epoch": epoch}
    for split in ("train", "test"):
        for suffix in ("", "_block0", "_block1"):
            made[f"{split}_loss{suffix}"] = 1.0 / epoch
            made[f"{split}_accuracy{suffix}"] = 1 - 0.5 / epoch
    return made | values


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, by file name; nothing is rendered."""
    drawn = {}
    monkeypatch.setattr(curves, "save", lambda figure, name, write: drawn.update({name: figure}))
    return drawn


def lines(axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines
    }


def test_values_of_runs(figures):
    runs = {"a": [row(1), row(2), row(3)], "b": [row(1, test_loss=0.25)]}
    curves.draw_runs(runs, lambda *_: None)
    panels = {axes.get_ylabel(): lines(axes) for axes in figures["curves"].axes}
    assert list(panels) == [
        "train loss, nats",
        "test loss, nats",
        "train accuracy, %",
        "test accuracy, %",
    ]
    assert panels["train loss, nats"]["a"] == ([1, 2, 3], [1, 1 / 2, 1 / 3])
    assert panels["test loss, nats"]["b"] == ([1], [0.25])
    assert panels["test accuracy, %"]["a"] == ([1, 2, 3], pytest.approx([50, 75, 100 - 50 / 3]))


def test_values_of_blocks(figures):
    runs = {"a": [row(1), row(2, test_loss_block0=None)], "without": []}
    curves.draw_blocks(runs, lambda *_: None)
    axes = figures["blocks"].axes
    assert len(axes) == 4
    assert lines(axes[0]) == {"block 0": ([1, 2], [1, 0.5]), "block 1": ([1, 2], [1, 0.5])}
    assert lines(axes[1])["block 0"] == ([1], [1])


def test_no_run_with_rows_draws_no_blocks(figures):
    curves.draw_blocks({"a": []}, lambda *_: None)
    assert figures == {}


def test_losses_that_cannot_be_drawn():
    """Diverged runs have curves, too: after an epoch with a loss, and without one."""
    names = ("train_loss", "test_loss", "train_loss_block0", "test_loss_block1")
    lost = [dict.fromkeys(names, value) for value in (math.inf, math.nan)]
    later = [[row(1), row(2, **values)] for values in lost]
    at_once = [[row(1, **values)] for values in lost]
    files = {}
    for runs in (later, at_once):
        curves.draw_runs(dict(zip("ab", runs, strict=True)), files.__setitem__)
    assert files.keys() == {"curves.png", "curves.svg"}
    assert files["curves.png"].startswith(b"\x89PNG")


def test_more_runs_than_colours(figures):
    runs = {f"run {k}": [row(1), row(2)] for k in range(10)}
    curves.draw_runs(runs, lambda *_: None)
    styles = {(line.get_color(), line.get_linestyle()) for line in figures["curves"].axes[0].lines}
    assert len(styles) == 10


def test_epochs_are_whole_numbers(figures):
    curves.draw_runs({"a": [row(1), row(2)]}, lambda *_: None)
    axes = figures["curves"].axes[0]
    ticks = np.array(axes.get_xticks())
    assert np.array_equal(ticks, ticks.round())


def test_a_blocks_training_loss_is_not_said_to_be_in_nats(figures):
    curves.draw_blocks({"a": [row(1)]}, lambda *_: None)
    names = [axes.get_ylabel() for axes in figures["blocks"].axes]
    assert names[0] == "train loss of the\nblock's own objective"
    assert names[1:] == ["test loss, nats", "train accuracy, %", "test accuracy, %"]


def test_validation_and_the_names_of_blocks(figures):
    rows = [row(1, validation_loss=0.5, validation_loss_block0=0.75, validation_accuracy=None)]
    curves.draw_runs({"a": rows}, lambda *_: None)
    panels = {axes.get_ylabel(): lines(axes) for axes in figures["curves"].axes}
    assert panels["validation loss, nats"]["a"] == ([1], [0.5])
    assert panels["validation accuracy, %"] == {}
    curves.draw_blocks({"a": rows}, lambda *_: None, {"a": ["conv1", "1"]})
    panels = {axes.get_ylabel(): lines(axes) for axes in figures["blocks"].axes}
    assert len(panels) == 5
    assert panels["validation loss, nats"] == {"0 conv1": ([1], [0.75])}
    assert panels["test loss, nats"].keys() == {"0 conv1", "block 1"}


def test_means_over_seeds(figures):
    """1, 2, 3: mean 2, standard deviation 1; an epoch that one seed lacks is left out."""
    seeds = [[row(1, test_loss=loss), row(2)] for loss in (1.0, 2.0, 3.0)]
    seeds[0].append(row(3))
    seeds[1][1]["test_loss"] = None
    found = curves.means(seeds)
    assert [r["epoch"] for r in found] == [1, 2]
    assert (found[0]["test_loss"], found[0]["spread of test_loss"]) == (2.0, 1.0)
    assert "test_loss" not in found[1]
    curves.draw_runs({"a": found, "b": [row(1), row(2)]}, lambda *_: None)
    [axes] = [a for a in figures["curves"].axes if a.get_ylabel() == "test loss, nats"]
    [band] = axes.collections  # of the run with several seeds alone
    low, high = band.get_paths()[0].get_extents().intervaly
    assert (low, high) == (1.0, 3.0)
