"""A rule that trains in phases: the schedule, the metrics, and continuing in the middle."""

from __future__ import annotations

import pytest

from layerwise.trainer import phase_of

OPTIONS = {
    "rule": {"name": "Sequential", "objectives": {"name": "Classify", "head": {"name": "Linear"}}},
    "model": {"name": "mlp", "layers": 2, "width": 12, "batch_norm": True, "dropout": 0.2},
    "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "schedule": {"name": "Step", "at": [0.5], "gamma": 0.5},
    "blocks": 3,
    "epochs": 7,
    "pictures": 0,
}


def test_the_schedule_runs_anew_and_only_one_block_is_trained(trainer_in):
    trainer = trainer_in("run", **OPTIONS)
    assert [trainer.stepper.rate.phase(epoch) for epoch in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    trainer.fit()
    rows = trainer.run.metrics()
    assert [float(row["lr"]) for row in rows] == [0.1, 0.05, 0.05, 0.1, 0.05, 0.1, 0.05]
    for row, active in zip(rows, [0, 0, 0, 1, 1, 2, 2], strict=True):
        trained = [row[f"train_loss_block{i}"] not in (None, "") for i in range(3)]
        assert trained == [i == active for i in range(3)]
        # Of the block that is trained on, and of the network's untrained output.
        for i in range(3):
            assert 0 <= float(row[f"validation_accuracy_block{i}"]) <= 1
    assert float(rows[2]["validation_accuracy_block0"]) > 0.3
    assert float(rows[2]["validation_accuracy"]) < 0.3
    assert float(rows[-1]["validation_accuracy"]) > 0.3
    log = (trainer.run.path / "log.txt").read_text().splitlines()
    lines = [line for line in log if "epoch " in line]
    assert "block 0  train loss" in lines[2]
    assert "block" not in lines[-1]
    assert not any("(best)" in line for line in lines[:5])
    assert "(best)" in lines[5]


def test_the_phase_of_an_epoch() -> None:
    assert [phase_of(epoch, (2, 1, 3)) for epoch in range(-1, 8)] == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert [phase_of(epoch, (4,)) for epoch in (0, 3, 4)] == [0, 0, 0]


@pytest.mark.parametrize(("optimizer", "step_per_block"), [("SGD", False), ("AdamW", True)])
def test_killed_at_any_step(
    step_per_block, optimizer, trainer_in, crash_at, crash, assert_same_run
):
    options = OPTIONS | {
        "optimizer": {"name": optimizer, "lr": 0.05, "weight_decay": 0.01},
        "epochs": 3,
        "pictures": 0,
        "save_every": 2,
        "step_per_block": step_per_block,
        "ema": 0.9,
    }
    trainer = trainer_in("straight", **options)
    trainer.fit()
    for kill in (3, trainer.stepper.steps_per_epoch + 1):  # in the first phase, and in the second
        crash_at(kill)
        with pytest.raises(crash):
            trainer_in("killed", **options).fit()
    crash_at(0)
    trainer_in("killed", **options).fit()
    assert_same_run("straight", "killed")
