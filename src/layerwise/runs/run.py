"""A run folder: everything that one training leaves behind.

No run ever overwrites another's files, and every file is either the old one or the new one, whole.
Always there:

    config.yaml         every option, defaults included
    environment.json    the command, versions and the machine
    data.json           a fingerprint of the data
    cost.json           parameters and FLOPs of every block and its heads; FLOPs of a training step
    log.txt             messages with their times
    metrics.csv         one row per epoch
    checkpoints/        last.safetensors; best.safetensors, selected on validation
    curves/             loss and accuracy over epochs
    model.safetensors   the trained network under its own parameter names

Where they were asked for:

    alignment.jsonl     angles of the gradient to backpropagation's, and of feedback to weights
    outcomes/           each training image's loss and whether it was right, after every epoch
    pictures/           reconstructions and first-layer filters

Loggers (`runs.loggers`) and the commands `evaluate` and `analyze` add files of their own.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from layerwise.errors import InputError, reason
from layerwise.runs.checkpoint_file import pack, read_checkpoint
from layerwise.runs.files import (
    append,
    claim,
    claim_numbered,
    disk_errors,
    remove_unfinished,
    write_atomically,
)

ALIGNMENT, OUTCOMES = "alignment.jsonl", "outcomes"


class Run:
    """A run folder that exists. `create` makes a new one, `open` finds one.

    Args:
        path: the folder.
        writes: whether anything is written; False in all but one of the processes that train
            together.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes

    @classmethod
    def create(cls, root: Path, name: str | None, stem: str, config: Mapping[str, Any]) -> Run:
        """A new folder under `root`.

        Args:
            root: the folder of all runs; made if it does not exist.
            name: of the folder; by default `stem` and the next free number.
            stem: the start of an unnamed run's name.
            config: written to config.yaml.

        Raises:
            InputError: a folder of that name exists; the disk cannot be written.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--runs {root}: cannot make a run there: {error.strerror}") from error
        try:
            run = cls(claim(root, name) if name else claim_numbered(root, stem))
        except FileExistsError as error:
            raise InputError(
                f"--name {name}: {root / str(name)} exists already and is never overwritten; "
                f"give another name, or continue it: layerwise train --resume {root / str(name)}"
            ) from error
        except OSError as error:
            raise InputError(f"--runs {root}: cannot make a run there: {error.strerror}") from error
        try:
            run.write("config.yaml", yaml.safe_dump(dict(config), sort_keys=False).encode())
        except InputError:
            with contextlib.suppress(OSError):
                run.path.rmdir()
            raise
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """The run in this folder.

        Raises:
            InputError: there is no such folder, or it does not hold a run.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            what = "holds no config.yaml" if path.is_dir() else "is not a folder"
            raise InputError(f"run {path}: {what}; give a folder that `layerwise train` made")
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def config(self) -> dict[str, Any]:
        """The options in config.yaml.

        Raises:
            InputError: the file cannot be read, or holds no mapping.
        """
        try:
            config = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"run {self.path}: config.yaml cannot be read: {error}") from error
        if not isinstance(config, dict):
            raise InputError(f"run {self.path}: config.yaml is not a mapping of options")
        return config

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run, so that only one process trains it at a time.

        The operating system releases the lock when the process ends, however it ends.

        Raises:
            InputError: another process holds the lock.
        """
        if not self.writes:
            yield
            return
        try:
            import fcntl
        except ImportError:  # not a POSIX system: there is no lock
            yield
            return
        path = self.path / "config.yaml"  # never written again, so a lock on it holds
        with contextlib.ExitStack() as stack:
            with disk_errors(path):
                lock = stack.enter_context(open(path, "r+b"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"run {self.path}: another process is training it; wait for it, or stop it"
                ) from error
            others = (self.path / "curves", self.path / "pictures", self.path / OUTCOMES)
            remove_unfinished([self.path, self.checkpoints, *others])
            yield

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        """Turn errors about options that an edited config.yaml lacks into one line."""
        try:
            yield
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"run {self.path}: config.yaml does not describe a run: {error!r}"
            ) from error

    def log(self, message: str) -> None:
        """Append a line to log.txt."""
        if not self.writes:
            return
        now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        path = self.path / "log.txt"
        with disk_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(f"{now}  {message}\n")

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically: a crash leaves the old one."""
        if not self.writes:
            return
        path = self.path / name
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)

    def add_metrics(self, row: Mapping[str, float | int | None]) -> None:
        """Append one epoch to metrics.csv; the first row's keys are the columns."""
        if not self.writes:
            return
        path = self.path / "metrics.csv"
        lines = io.StringIO()
        writer = csv.DictWriter(lines, fieldnames=list(row))
        if not path.exists() or path.stat().st_size == 0:
            writer.writeheader()
        writer.writerow(row)
        with disk_errors(path):
            append(path, lines.getvalue().encode())

    def metrics(self) -> list[dict[str, float | None]]:
        """The rows of metrics.csv; empty cells are None."""
        path = self.path / "metrics.csv"
        if not path.is_file():
            return []
        try:
            with open(path, newline="") as file:
                rows = list(csv.DictReader(file))
            return [{k: float(v) if v else None for k, v in row.items()} for row in rows]
        except (OSError, ValueError, TypeError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"run {self.path}: metrics.csv cannot be read: {error}") from error

    def keep_metrics(self, epochs: int) -> None:
        """Drop rows after the first `epochs`.

        A run that was killed may have written the row of an epoch without its checkpoint.
        """
        if not self.writes:
            return
        path = self.path / "metrics.csv"
        if path.is_file():
            lines = path.read_bytes().splitlines(keepends=True)
            kept = (
                lines[: epochs + 1] if epochs else []
            )  # without a row, even the header may be cut short
            if len(kept) < len(lines):
                self.write("metrics.csv", b"".join(kept))

    def add_line(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row to a file of one JSON object per line."""
        if not self.writes:
            return
        path = self.path / name
        with disk_errors(path):
            append(path, (json.dumps(row) + "\n").encode())

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The rows that `add_line` wrote to this file; an empty list if there is no such file.

        Raises:
            InputError: the file cannot be read.
        """
        path = self.path / name
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise InputError(f"run {self.path}: {name} cannot be read: {reason(error)}") from error

    def keep_lines(self, name: str, step: int) -> None:
        """Drop the rows of `step` and of later steps, which will be written again."""
        rows = self.lines(name)
        kept = [row for row in rows if row["step"] < step]
        if len(kept) < len(rows):
            self.write(name, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write checkpoints/`name`.safetensors atomically.

        Args:
            name: such as "last".
            state: nested mappings, lists, numbers, strings and tensors.
        """
        self.write(f"checkpoints/{name}.safetensors", pack(state))

    def load(self, name: str) -> dict[str, Any] | None:
        """The state that `save` wrote under this name, or None if there is none."""
        path = self.checkpoints / f"{name}.safetensors"
        return read_checkpoint(path) if path.exists() else None

    def checkpoint(self, name: str) -> dict[str, Any]:
        """The state that `save` wrote under this name.

        Raises:
            InputError: there is none.
        """
        state = self.load(name)
        if state is None:
            there = sorted(p.stem for p in self.checkpoints.glob("*.safetensors"))
            raise InputError(
                f"--checkpoint {name}: {self.path} has no such checkpoint; there is: "
                f"{', '.join(there) or 'no checkpoint yet'}"
            )
        return state
