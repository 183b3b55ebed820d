"""Loggers beside metrics.csv: the same values, each epoch once, closed however training ends."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerwise.errors import InputError
from layerwise.runs import loggers as module
from layerwise.runs.loggers import TensorBoard
from layerwise.runs.run import Run
from layerwise.trainer import Trainer


def wanted(run: Path) -> dict[tuple[str, int], float]:
    """(name, epoch) -> value, as metrics.csv has them."""
    return {
        (key.replace("_", "/", 1) if key.split("_")[0] in module.SPLITS else key, row["epoch"]): v
        for row in Run(run).metrics()
        for key, v in row.items()
        if v is not None
    }


def events(run: Path) -> list[tuple[tuple[str, int], float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return [
        ((tag, event.step), event.value)
        for tag in accumulator.Tags()["scalars"]
        for event in accumulator.Scalars(tag)
    ]


def test_tensorboard(trained):
    run = trained("run", "--loggers tensorboard")
    found = events(run)
    assert dict(found) == pytest.approx(wanted(run), rel=1e-5)
    assert len(found) == len(dict(found)) == len(wanted(run))
    assert ("train/loss_block0", 2) in dict(found)


PICTURED = (
    "--model basic_cnn --model.channels 4 --model.kernel_size 3 --epochs 2 --batch_size 200 "
    "--device cpu --rule Greedy --rule.objectives Reconstruct --pictures 1 --runs runs --name run"
)
IMAGES = {f"pictures/{name}" for name in ("block-0", "block-1", "block-2", "filters")}


def pixels(run: Path, name: str, epoch: int) -> np.ndarray:
    """What the run's own file shows."""
    file = name.replace("pictures/", f"pictures/epoch-{epoch:03d}-") + ".png"
    return np.asarray(Image.open(run / file))


def test_tensorboard_pictures(cli, no_pictures):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli(f"train {PICTURED} --loggers tensorboard").code == 0
    run = Path("runs/run")
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    accumulator.Reload()
    assert set(accumulator.Tags()["images"]) == IMAGES
    for name in IMAGES:
        logged = accumulator.Images(name)
        assert [event.step for event in logged] == [1, 2]
        for event in logged:
            image = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
            assert np.array_equal(image, pixels(run, name, event.step))


def test_a_resumed_run_logs_each_epoch_once(trained, cli, monkeypatch):
    """Also where the process died after an epoch was measured and before it was saved."""
    trained("straight", "--epochs 3")
    save = Run.save

    def dies(run, name, state):
        if state["epoch"] == 2:
            raise KeyboardInterrupt
        save(run, name, state)

    line = "--config runs/straight/config.yaml --runs runs --name run --loggers tensorboard"
    with monkeypatch.context() as patched:
        patched.setattr(Run, "save", dies)
        assert cli(f"train {line}").code == 130
    assert cli("train --resume runs/run").code == 0
    found = events(Path("runs/run"))
    assert len(found) == len(dict(found))
    assert dict(found) == pytest.approx(wanted(Path("runs/run")), rel=1e-5)


@pytest.fixture
def closed(monkeypatch) -> list[TensorBoard]:
    """The TensorBoard loggers that were closed."""
    close, seen = TensorBoard.close, []

    def spy(self):
        seen.append(self)
        close(self)

    monkeypatch.setattr(TensorBoard, "close", spy)
    return seen


def _interrupt(*_):
    raise KeyboardInterrupt


def _full(*_):
    raise InputError("cannot write: No space left on device")


@pytest.mark.parametrize(
    ("place", "fails", "rate", "code"),
    [
        ((Trainer, "_finish_step"), _interrupt, 0.1, 130),
        ((Run, "add_metrics"), _full, 0.1, 2),
        (None, None, 1e30, 1),
        (None, None, 0.1, 0),
    ],
    ids=["interrupted", "full disk", "diverged", "done"],
)
def test_loggers_are_closed_however_training_ends(
    place, fails, rate, code, cli, closed, no_pictures, monkeypatch
):
    if place is not None:
        monkeypatch.setattr(*place, fails)
    line = f"train --model mlp --epochs 1 --optimizer.lr {rate} --schedule Constant --runs runs"
    assert cli(f"{line} --loggers tensorboard").code == code
    assert len(closed) == 1


def test_loggers_that_have_begun_are_closed_where_the_next_cannot(cli, closed, monkeypatch):
    def refuses(run, config):
        raise ConnectionError("no\nconnection")

    monkeypatch.setitem(module.LOGGERS, "mlflow", refuses)
    monkeypatch.setattr(module, "find_spec", lambda name: name)  # it need not be installed here
    result = cli("train --model mlp --epochs 1 --loggers tensorboard,mlflow --runs runs")
    assert result.code == 2
    assert result.err.splitlines()[-1].endswith("--loggers mlflow: cannot start: no connection")
    assert len(closed) == 1


@pytest.mark.slow
def test_wandb_offline(trained, cli, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged = []
    log = wandb.sdk.wandb_run.Run.log

    def spy(self, data, step=None, **options):
        logged.extend(((key, step), value) for key, value in data.items())
        return log(self, data, step=step, **options)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", spy)
    run = trained("run", "--loggers wandb")
    assert dict(logged) == pytest.approx(wanted(run))
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    identity = (run / "wandb-id.txt").read_text()
    assert cli(f"train --resume {run}").code == 0
    assert (run / "wandb-id.txt").read_text() == identity
    assert {p.name for p in Path().iterdir()} == {"runs"}


@pytest.mark.slow
def test_wandb_pictures(cli, no_pictures, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert cli(f"train {PICTURED} --loggers wandb").code == 0
    run = Path("runs/run")
    media = next(run.glob("wandb/offline-run-*/files/media/images"))
    for name in IMAGES:
        files = sorted(media.glob(f"{name}_*.png"), key=lambda p: int(p.stem.split("_")[1]))
        assert [p.stem.split("_")[1] for p in files] == ["1", "2"]
        for epoch, file in enumerate(files, 1):
            assert np.array_equal(np.asarray(Image.open(file)), pixels(run, name, epoch))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # its own
def test_mlflow(trained, cli, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = trained("run", "--loggers mlflow")
    identity = (run / "mlflow-id.txt").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{(run / 'mlflow.db').resolve()}")
    found = [
        ((key, point.step), point.value)
        for key in client.get_run(identity).data.metrics
        for point in client.get_metric_history(identity, key)
    ]
    assert dict(found) == pytest.approx(wanted(run))
    assert len(found) == len(dict(found))
    assert client.get_run(identity).info.status == "FINISHED"
    assert {p.name for p in Path().iterdir()} == {"runs"}  # nothing beside the run
    assert os.listdir(run / "mlflow")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # its own
def test_mlflow_pictures(cli, no_pictures, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli(f"train {PICTURED} --loggers mlflow").code == 0
    run = Path("runs/run")
    client = mlflow.MlflowClient(f"sqlite:///{(run / 'mlflow.db').resolve()}")
    found = client.list_artifacts((run / "mlflow-id.txt").read_text(), "images")
    assert len([file for file in found if file.path.endswith(".png")]) == 2 * len(IMAGES)
