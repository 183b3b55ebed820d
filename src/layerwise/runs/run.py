"""A run folder: config, log, metrics, checkpoints, curves. Nothing in it is ever overwritten by
another run, and a file is either the old one or the new one, whole.

    config.yaml         everything that was asked for, defaults included
    environment.json    command, versions, machine
    log.txt             what was said, with times
    metrics.csv         one row per epoch
    alignment.jsonl     angles to backpropagation's gradient, and of feedback matrices to weights,
                        where they were asked for
    outcomes/           which training images were right after each epoch, the same
    checkpoints/        last.safetensors, best.safetensors (selected on validation)
    curves/             loss and accuracy
    pictures/           reconstructions and first-layer filters
    model.safetensors   the trained network under its own parameter names
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor

from layerwise.errors import InputError, reason

FORMAT = "layerwise-checkpoint-1"
ALIGNMENT, OUTCOMES = "alignment.jsonl", "outcomes"
TEMPORARY = ".part"  # what the name of a file that is being written ends in


class Run:
    """A run folder that exists. `create` makes a new one, `open` finds one.

    Args:
        path: the folder.
        writes: whether anything is written; not by a process that only trains along.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes

    @classmethod
    def create(cls, root: Path, name: str | None, stem: str, config: Mapping[str, Any]) -> Run:
        """A new folder under `root`.

        Args:
            root: where runs live; made if need be.
            name: of the folder; by default `stem` and the next free number.
            stem: what an unnamed run is called after.
            config: written to config.yaml.

        Raises:
            InputError: a folder of that name is there; the disk does not take it.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--runs {root}: cannot make a run there: {error.strerror}") from error
        try:
            run = cls(_claim(root, name) if name else claim_numbered(root, stem))
        except FileExistsError as error:
            raise InputError(
                f"--name {name}: {root / str(name)} is there already and is never overwritten; "
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
            InputError: no folder, or not a run's.
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
        """What config.yaml holds.

        Raises:
            InputError: it cannot be read, or is no mapping.
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
        """Hold the run, so that no two trainings of it go on at once; the system lets go of it
        however the process ends."""
        if not self.writes:
            yield
            return
        try:
            import fcntl
        except ImportError:  # not a POSIX system: go without
            yield
            return
        path = self.path / "config.yaml"  # never written again, so a lock on it holds
        with contextlib.ExitStack() as stack:
            with _disk(path):
                lock = stack.enter_context(open(path, "r+b"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"run {self.path}: another process is training it; wait for it, or stop it"
                ) from error
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove what a process that was killed was writing."""
        others = (self.path / "curves", self.path / "pictures", self.path / OUTCOMES)
        for folder in (self.path, self.checkpoints, *others):
            for temporary in folder.glob(f".*{TEMPORARY}"):
                with contextlib.suppress(OSError):
                    temporary.unlink()

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        """Say in one line where config.yaml lacks something, as one that was edited may."""
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
        with _disk(path), open(path, "a", encoding="utf-8") as file:
            file.write(f"{now}  {message}\n")

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all; a crash leaves the old one."""
        if not self.writes:
            return
        path = self.path / name
        with _disk(path):
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
        with _disk(path), open(path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                _write_all(file, lines.getvalue().encode())
            except OSError:
                file.truncate(before)  # not half a row
                raise

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
        """Drop rows beyond the first `epochs`: a killed run may have more than it saved."""
        if not self.writes:
            return
        path = self.path / "metrics.csv"
        if path.is_file():
            lines = path.read_bytes().splitlines(keepends=True)
            kept = lines[: epochs + 1] if epochs else []  # without a row the header may be in part
            if len(kept) < len(lines):
                self.write("metrics.csv", b"".join(kept))

    def add_line(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row to a file of one JSON object per line."""
        if not self.writes:
            return
        path = self.path / name
        with _disk(path), open(path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                _write_all(file, (json.dumps(row) + "\n").encode())
            except OSError:
                file.truncate(before)  # not half a row
                raise

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The rows that `add_line` wrote under this name, none where it wrote none."""
        path = self.path / name
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise InputError(f"run {self.path}: {name} cannot be read: {reason(error)}") from error

    def keep_lines(self, name: str, step: int) -> None:
        """Drop the rows of `step` and later ones, which will be written again."""
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
        """What `save` wrote under this name, or None where nothing was saved."""
        path = self.checkpoints / f"{name}.safetensors"
        return read_checkpoint(path) if path.exists() else None

    def checkpoint(self, name: str) -> dict[str, Any]:
        """As `load`, of one that must be there.

        Raises:
            InputError: it is not.
        """
        state = self.load(name)
        if state is None:
            there = sorted(p.stem for p in self.checkpoints.glob("*.safetensors"))
            raise InputError(
                f"--checkpoint {name}: {self.path} has none; there is: "
                f"{', '.join(there) or 'no checkpoint yet'}"
            )
        return state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `Run.save` wrote. Only tensors and JSON are read; nothing is executed.

    Raises:
        InputError: not readable, cut short, or not of this library.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise InputError(
                    f"checkpoint {path}: a safetensors file, but not a checkpoint of layerwise; "
                    "give one that `layerwise train` wrote"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return _unpack(json.loads(about["state"]), tensors)
    except InputError:
        raise
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"checkpoint {path}: corrupt or not a checkpoint ({reason(error)}); use another one"
        ) from error


def pack(state: Mapping[str, Any]) -> bytes:
    """Nested state as one safetensors file: tensors by path, the rest as JSON in its header."""
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(state, "", tensors)
    about = {"format": FORMAT, "state": json.dumps(skeleton)}
    return safetensors.torch.save(tensors, metadata=about)


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # Cloned: parts of the state may share memory, which the format refuses.
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": path}
    if isinstance(value, Mapping):
        items = [[k, _pack(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        return {"mapping": items}
    if isinstance(value, (list, tuple)):
        return [_pack(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
    return value


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {k: _unpack(v, tensors) for k, v in value["mapping"]}
    return value


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step: after a crash it is the old one or the new one."""
    descriptor, temporary = tempfile.mkstemp(TEMPORARY, f".{path.name}.", path.parent)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            _write_all(file, content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _write_all(file: io.FileIO, content: bytes) -> None:
    """Write all of it, down to the disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def write_new(path: Path, content: bytes, asked_by: str) -> None:
    """Write a file that a user named, unless it is there.

    Raises:
        InputError: it is there; the disk does not take it.
    """
    if path.exists():
        raise InputError(f"{asked_by} {path}: it is there already and is never overwritten")
    with _disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; what was written before is kept: "
            "make room or allow writing there, then go on (a run: layerwise train --resume RUN)"
        ) from error


def _claim(root: Path, name: str) -> Path:
    (root / name).mkdir(parents=True)  # fails where it is there: the claim is atomic
    return root / name


def claim_numbered(root: Path, stem: str) -> Path:
    """Make the first folder `stem`-1, `stem`-2, ... that is not there."""
    number = 1
    while True:
        try:
            return _claim(root, f"{stem}-{number}")
        except FileExistsError:
            number += 1
