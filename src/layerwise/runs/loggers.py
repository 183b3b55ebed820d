"""Loggers that receive a run's metrics and pictures: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from layerwise.errors import InputError, choices
from layerwise.runs.run import Run

Row = Mapping[str, float | int | None]
SPLITS = ("train", "validation", "test")


def _numbers(row: Row) -> dict[str, float]:
    """Rename `train_loss_block0` to `train/loss_block0`; columns without a value are left out."""
    named = {}
    for key, value in row.items():
        if value is not None:
            split, _, rest = key.partition("_")
            named[f"{split}/{rest}" if split in SPLITS else key] = value
    return named


class TensorBoard:
    """Writes event files into the run folder (needs `pip install layerwise[tensorboard]`)."""

    def __init__(self, run: Run, config: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.path / "tensorboard"))
        self.writer.add_text("config", f"```\n{config}\n```")

    def log(self, row: Row) -> None:
        for key, value in _numbers(row).items():
            self.writer.add_scalar(key, value, global_step=int(row["epoch"] or 0))
        self.writer.flush()

    def log_image(self, name: str, image: np.ndarray, epoch: int) -> None:
        """Log an image, (H, W, 3) uint8."""
        self.writer.add_image(name, image, global_step=epoch, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Logs to Weights & Biases (needs `pip install layerwise[wandb]`).

    Its environment variables apply: WANDB_MODE=offline writes only to the run folder.
    """

    def __init__(self, run: Run, config: Mapping[str, Any]):
        import wandb

        # A resumed run continues under the same identity.
        identity = run.path / "wandb-id.txt"
        known = identity.read_text().strip() if identity.exists() else None
        self.run = wandb.init(
            project="layerwise",
            name=run.path.name,
            config=dict(config),
            dir=str(run.path),
            id=known,
            resume="allow" if known else None,
        )
        run.write("wandb-id.txt", self.run.id.encode())

    def log(self, row: Row) -> None:
        self.run.log(_numbers(row), step=int(row["epoch"] or 0))

    def log_image(self, name: str, image: np.ndarray, epoch: int) -> None:
        """Log an image, (H, W, 3) uint8."""
        from wandb import Image

        self.run.log({name: Image(image)}, step=epoch)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """Logs to MLflow (needs `pip install layerwise[mlflow]`).

    MLFLOW_TRACKING_URI says where to; by default into a database in the run folder.
    """

    def __init__(self, run: Run, config: Mapping[str, Any]):
        import os

        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            path = run.path.resolve()
            mlflow.set_tracking_uri(f"sqlite:///{path / 'mlflow.db'}")
            if mlflow.get_experiment_by_name("layerwise") is None:  # its default is ./mlruns
                mlflow.create_experiment("layerwise", (path / "mlflow").as_uri())
        mlflow.set_experiment("layerwise")
        identity = run.path / "mlflow-id.txt"
        known = identity.read_text().strip() if identity.exists() else None
        active = mlflow.start_run(run_id=known, run_name=None if known else run.path.name)
        if known is None:
            run.write("mlflow-id.txt", active.info.run_id.encode())
            mlflow.log_dict(dict(config), "config.yaml")
        self._mlflow = mlflow

    def log(self, row: Row) -> None:
        self._mlflow.log_metrics(_numbers(row), step=int(row["epoch"] or 0))

    def log_image(self, name: str, image: np.ndarray, epoch: int) -> None:
        """Log an image, (H, W, 3) uint8."""
        self._mlflow.log_image(image, key=name, step=epoch, synchronous=True)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._mlflow.end_run()


LOGGERS: dict[str, Callable[[Run, Mapping[str, Any]], Any]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def check_loggers(names: Sequence[str]) -> None:
    """Check the names of loggers before anything is created.

    Raises:
        InputError: there is no such logger; its library is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise InputError(f"--loggers {name}: no such logger; {choices(name, LOGGERS)}")
        if find_spec(name) is None:
            raise InputError(
                f"--loggers {name}: its library is not installed; pip install 'layerwise[{name}]'"
            )


@contextlib.contextmanager
def loggers(names: Sequence[str], run: Run, config: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Start loggers by their names, and close them however the training ends.

    Args:
        names: such as "tensorboard".
        run: the run whose folder they may use.
        config: the options of the run.

    Raises:
        InputError: as `check_loggers`; a logger cannot start (no login, no connection).
    """
    check_loggers(names)
    with contextlib.ExitStack() as stack:
        made: list[Any] = []
        for name in names:
            try:
                made.append(LOGGERS[name](run, config))
            except InputError:
                raise
            except Exception as error:  # these libraries raise many kinds of errors
                reason = " ".join(str(error).split())
                raise InputError(f"--loggers {name}: cannot start: {reason}") from error
            stack.callback(made[-1].close)
        yield made
