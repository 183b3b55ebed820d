"""What `benchmarks/early_exits.py` trains and times."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from layerwise import data
from layerwise.cli.options import experiment_config, experiment_parser, read_config
from layerwise.cli.parser import tokens_of


@pytest.fixture
def early_exits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import early_exits

    return early_exits


def test_contenders_take_turns(early_exits, monkeypatch) -> None:
    """After one round that is not timed; the seconds are each contender's own."""
    clock, order = [0.0], []
    monkeypatch.setattr(early_exits.time, "process_time", lambda: clock[0])

    def takes(name: str, seconds: float) -> None:
        order.append(name)
        clock[0] += seconds * (1 if len(order) > 2 else 100)

    found = early_exits.in_turns({"a": lambda: takes("a", 1.0), "b": lambda: takes("b", 2.0)})
    assert order == ["a", "b"] * (early_exits.ROUNDS + 1)
    assert found == {"a": [1.0] * early_exits.ROUNDS, "b": [2.0] * early_exits.ROUNDS}


def test_the_frozen_network_learns_heads_only(early_exits) -> None:
    """The network, heads and budget of "Backprop with heads", with all of its modules frozen."""
    configs = []
    for rule in ("Backprop with heads", early_exits.FROZEN):
        line = f"{early_exits.SETTINGS['cnn']} {early_exits.RULES[rule]}".split()
        parser, tokens = experiment_parser(read_config(tokens_of(line)), "layerwise train")
        configs.append(experiment_config(parser.read(tokens)))
    heads, frozen = configs
    assert frozen["freeze"] == ["conv1", "conv2", "conv3", "classifier"]
    assert frozen | {"freeze": heads["freeze"]} == heads


def test_text(early_exits, monkeypatch, tmp_path: Path) -> None:
    """Drafts give the full network's text; with threshold 0 every token leaves at the first exit,
    and with one above 1 at the last."""
    for name, value in {"COUNT": 6, "PROMPT": 4, "ROUNDS": 1, "TEXT_TIMED": (0.0, 1.1)}.items():
        monkeypatch.setattr(early_exits, name, value)
    monkeypatch.setattr(early_exits, "THRESHOLDS", (0.0, 1.1))
    tiny = dataclasses.replace(early_exits.BUDGET, context=8, layers=3, width=16, steps=3)
    monkeypatch.setattr(early_exits, "BUDGET", tiny)
    splits = data.load("markov", context=8)
    found = early_exits.of_a_text("DGL", splits, tmp_path)
    ways = {of["way"]: of for of in found["generated"]}
    drafted = [ways[f"full, drafts of exit {k}"] for k in (0, 2)]
    assert [of["same_as_full"] for of in drafted] == [1.0, 1.0]
    assert all(of["forwards"] <= ways["full"]["forwards"] == 6 for of in drafted)
    assert ways["threshold 0"]["shares"] == [1.0, 0.0, 0.0, 0.0]
    assert ways["threshold 1.1"]["shares"] == [0.0, 0.0, 0.0, 1.0]
    assert ways["threshold 1.1"]["same_as_full"] == 1.0
    assert ways["threshold 0"]["same_as_full"] == ways["exit 0"]["same_as_full"]
    first, last = found["thresholds"]
    assert first["accuracy"] == pytest.approx(found["fixed"][0]["accuracy"])
    assert first["flops"] == found["fixed"][0]["flops"]
    assert last["accuracy"] == pytest.approx(found["fixed"][-1]["accuracy"])
    assert last["flops"] > found["fixed"][-1]["flops"]  # the heads of all exits
    again = early_exits.of_a_text("DGL", splits, tmp_path)  # not trained again
    assert again["training"] == found["training"]
    assert again["fixed"] == found["fixed"]
