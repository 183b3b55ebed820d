"""What is recorded while a network trains, and that training does not notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from layerwise.analysis import gradient_alignment
from layerwise.errors import InputError
from layerwise.runs.run import Run
from layerwise.trainer import Observer, Settings, Trainer

NOISY = {"name": "mlp", "layers": 2, "width": 12, "dropout": 0.2, "batch_norm": True}


class Recorder(Observer):
    """Records angles before every second step, and each epoch; draws random numbers."""

    def __init__(self, run: Run):
        self.run = run

    def due(self, step):
        return step % 2 == 0

    def before_step(self, step, rule, *, x, y, scale):
        torch.rand(3)
        found = gradient_alignment(rule, x, y, scale=scale)
        self.run.add_line("alignment.jsonl", {"step": step, "angle": [a.angle for a in found]})

    def before_checkpoint(self, epoch, rule):
        assert not any(m.training for m in rule.modules())
        torch.rand(3)
        self.run.add_line("outcomes.jsonl", {"step": epoch})


@pytest.fixture
def watched(trainer_in: Callable[..., Trainer]) -> Callable[..., Trainer]:
    """As `trainer_in`, with a recorder."""

    def make(folder: str, **options) -> Trainer:
        trainer = trainer_in(folder, **options)
        trainer.observers.append(Recorder(trainer.run))
        trainer.run.keep_lines("alignment.jsonl", trainer.position.step)
        trainer.run.keep_lines("outcomes.jsonl", trainer.position.epoch + 1)
        return trainer

    return make


@pytest.mark.parametrize(
    "options",
    [
        {"model": NOISY, "accumulate": 2, "ema": 0.9, "save_every": 2},
        {
            "rule": {"name": "MAN", "scaled": True, "head": {"name": "MLP", "width": 8}},
            "step_per_block": True,
            "precision": "bf16",
        },
    ],
)
def test_training_goes_on_to_the_same_bits(
    options, trainer_in, watched, crash_at, crash, assert_same_run, tmp_path: Path
):
    options = {"epochs": 2, **options}
    trainer_in("plain", **options).fit()
    watched("watched", **options).fit()
    assert_same_run("plain", "watched")
    lines = Run(tmp_path / "watched").lines("alignment.jsonl")
    steps = trainer_in("plain", **options).position.step
    assert [line["step"] for line in lines] == list(range(0, steps, 2))
    assert all(0 <= angle <= 180 for line in lines for angle in line["angle"])
    outcomes = Run(tmp_path / "watched").lines("outcomes.jsonl")
    assert outcomes == [{"step": 1}, {"step": 2}]
    crash_at(4)
    with pytest.raises(crash):
        watched("killed", **options).fit()
    crash_at(0)
    watched("killed", **options).fit()
    assert_same_run("plain", "killed")
    for name in ("alignment.jsonl", "outcomes.jsonl"):
        read = [(tmp_path / folder / name).read_bytes() for folder in ("watched", "killed")]
        assert read[0] == read[1]


def test_settings_that_make_no_sense():
    with pytest.raises(InputError, match="--alignment_every -1: give 0 or more"):
        Settings(alignment_every=-1)
    with pytest.raises(InputError, match="contradicts --alignment_every 3"):
        Settings(alignment_every=3, stages=2)


def test_lines_that_cannot_be_read(tmp_path: Path):
    run = Run(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"st\n{"step": 1}\n')
    with pytest.raises(InputError, match=r"rows.jsonl cannot be read"):
        run.lines("rows.jsonl")
