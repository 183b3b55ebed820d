"""The list of a run's files, in the docstring of `runs/run.py`, against what a training leaves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from layerwise.cli import main
from layerwise.runs import run as module
from layerwise.runs.run import with_names_of_today

TRAIN = (
    "train --data digits --model basic_cnn --model.channels 4 --model.hidden 8 --blocks 2 "
    "--epochs 1 --batch_size 200 --device cpu --runs runs --name run --rule DGL"
)
FEWEST = "--pictures 0"
ALL = "--pictures 1 --alignment_every 5 --outcomes true"


def listed() -> tuple[set[str], set[str]]:
    """The files and folders that are always there, and those that an option asks for."""
    always, optional = (module.__doc__ or "").split("Where they were asked for:")
    return tuple(set(re.findall(r"^    (\S+)  ", text, re.M)) for text in (always, optional))


@pytest.mark.parametrize("options", [pytest.param(FEWEST, marks=pytest.mark.slow), ALL])
def test_the_list_names_all_files_of_a_run(options: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(f"{TRAIN} {options}".split()) == 0
    there = {f"{p.name}/" if p.is_dir() else p.name for p in Path("runs/run").iterdir()}
    always, optional = listed()
    assert there == (always | optional if options == ALL else always)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({"name": "Overlap", "overlap": 1, "independent": 0.0}, {"name": "Overlap", "overlap": 1}),
        ({"name": "Overlap", "independent": 0.5}, {"name": "HPFF", "independent": 0.5}),
        ({"name": "Overlap", "overlap": 2}, {"name": "Overlap", "overlap": 2}),
    ],
)
def test_runs_of_overlap_with_independent_losses_are_of_hpff(was, now):
    assert with_names_of_today({"rule": was, "seed": 1}) == {"rule": now, "seed": 1}
