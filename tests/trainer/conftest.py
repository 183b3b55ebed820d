"""A trainer of a tiny network on the digits, without the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from layerwise.experiment.build import build
from layerwise.experiment.registry import make
from layerwise.runs.run import Run
from layerwise.trainer import Observer, Trainer, fabric_for

TINY: dict[str, Any] = {
    "data": {"name": "digits"},
    "augment": {},
    "model": {"name": "mlp", "layers": 2, "width": 12},
    "blocks": 2,
    "at": None,
    "balance": "flops",
    "rule": {"name": "DGL", "head": {"name": "MLP", "width": 8}},
    "optimizer": {"name": "SGD", "lr": 0.1},
    "schedule": {"name": "OneCycle"},
    "epochs": 2,
    "batch_size": 200,
    "device": "cpu",
}


@pytest.fixture
def trainer_in(tmp_path: Path) -> Callable[..., Trainer]:
    """`trainer_in(folder, **options)`: a new trainer; where the folder is a run, it continues."""

    def make_trainer(folder: str, observers: Sequence[Observer] = (), **options: Any) -> Trainer:
        config = TINY | options
        path = tmp_path / folder
        run = Run.open(path) if path.exists() else Run.create(tmp_path, folder, "", config)
        experiment = build(config)
        fabric = fabric_for("cpu", experiment.settings.precision)
        trainer = Trainer(
            network=experiment.network,
            rule=experiment.rule,
            loaders=experiment.loaders(fabric.device),
            optimizer=make("optimizer", config["optimizer"]),
            schedule=make("schedule", config["schedule"]),
            settings=experiment.settings,
            run=run,
            fabric=fabric,
            observers=observers,
        )
        state = run.load("last")
        if state is not None:
            trainer.state.load_state_dict(state)
        run.keep_metrics(trainer.position.epoch)
        return trainer

    return make_trainer


@pytest.fixture
def crash_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`crash_at(n)`: the n-th step from now on raises `Crash` once it is done; 0 for none."""
    finish = Trainer._finish_step

    def arm(step: int) -> None:
        left = [step]

        def crashing(self: Trainer) -> None:
            finish(self)
            left[0] -= 1
            if left[0] == 0:
                raise Crash

        monkeypatch.setattr(Trainer, "_finish_step", crashing)

    return arm


class Crash(Exception):
    """Stands for a process that is killed."""


@pytest.fixture
def crash() -> type[Exception]:
    return Crash


@pytest.fixture
def assert_same_run(tmp_path: Path) -> Callable[[str, str], None]:
    """Two runs end alike, bit for bit, but for how long they took."""

    def check(a: str, b: str) -> None:
        left, right = Run.open(tmp_path / a), Run.open(tmp_path / b)
        for name in ("last", "best"):
            assert_equal(left.load(name), right.load(name), name)
        rows = [[_timeless(row) for row in run.metrics()] for run in (left, right)]
        assert rows[0] == rows[1]
        assert len(rows[0]) > 0
        for name in ("model.safetensors",):
            assert (left.path / name).read_bytes() == (right.path / name).read_bytes()

    return check


def _timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("seconds", "images_per_s")}


def assert_equal(a: Any, b: Any, path: str) -> None:
    if path.endswith("/seconds"):
        return
    assert type(a) is type(b), path
    if isinstance(a, Mapping):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path
