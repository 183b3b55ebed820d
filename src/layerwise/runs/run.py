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

Loggers (`runs.loggers`) and the commands `evaluate`, `analyze` and `labels` add files of their own.
Where a run goes back to an earlier checkpoint, or is trained longer than it was begun for, a folder
set-aside-N keeps its files as they were.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from layerwise.arguments import shortened
from layerwise.errors import InputError, reason
from layerwise.runs import rows, safe_yaml
from layerwise.runs.checkpoint_file import USE_ANOTHER, pack, read_checkpoint
from layerwise.runs.files import (
    append,
    claim,
    claim_numbered,
    disk_errors,
    remove_unfinished,
    write_atomically,
)

CONFIG, METRICS, ALIGNMENT, OUTCOMES = "config.yaml", "metrics.csv", "alignment.jsonl", "outcomes"
NETWORK = "model.safetensors"
MADE_BY = "made_by"  # in a config: what made the run, if not `layerwise train`
# What a training writes, as set aside where a run goes back to an earlier checkpoint.
GROWING = (METRICS, ALIGNMENT)  # appended to in place; all other files are replaced
TRAINED = (*GROWING, NETWORK, "checkpoints", OUTCOMES, "pictures", "curves")
# What values of another kind raise, wherever they are used; RuntimeError: in PyTorch.
OF_VALUES = (
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
)
LONGEST_NAME = 255  # bytes, on common file systems


class Run:
    """A run folder that exists. `create` makes a new one, `open` finds one.

    Args:
        path: the folder.
        writes: whether anything is written; False in all but one of the processes that train
            together.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes
        self._begun: os.stat_result | None = None  # config.yaml as it was when the run was locked

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
        check_name(root, name)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--runs {root}: cannot make a run there: {error.strerror}") from error
        try:
            run = cls(claim(root, name) if name else claim_numbered(root, stem))
        except FileExistsError as error:
            raise _taken(root, str(name)) from error
        except OSError as error:
            raise InputError(f"--runs {root}: cannot make a run there: {error.strerror}") from error
        try:
            run.write(CONFIG, yaml.safe_dump(dict(config), sort_keys=False).encode())
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
        if not str(path).isprintable():  # its name would fail in the first message about it
            raise InputError(
                f"run {str(path)!a}: the path holds characters that cannot be printed; rename "
                "the folder"
            )
        if not os.path.isfile(path / CONFIG):
            what = "holds no config.yaml" if os.path.isdir(path) else "is not a folder"
            raise InputError(f"run {path}: {what}; give a folder that `layerwise train` made")
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def how_to_continue(self) -> str:
        """The command or the call that continues the run."""
        if self.config.get(MADE_BY) == "fit":
            return f"lw.fit(..., resume={str(self.path)!r})"
        return f"layerwise train --resume {self.path}"

    @property
    def config(self) -> dict[str, Any]:
        """The options in config.yaml.

        Raises:
            InputError: the file cannot be read, or holds no mapping.
        """
        try:
            config = safe_yaml.load_file(self.path / CONFIG)
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            what = " ".join(str(error).split())
            raise InputError(f"run {self.path}: config.yaml cannot be read: {what}") from error
        if not isinstance(config, dict):
            raise InputError(f"run {self.path}: config.yaml is not a mapping of options")
        return with_names_of_today(config)

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
        path = self.path / CONFIG  # where `rewrite_config` replaces it, `check_there` refuses
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
            self._begun = os.fstat(lock.fileno())
            try:
                yield
            finally:
                self._begun = None

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        """Turn errors about options that an edited config.yaml lacks, or whose values are of
        another kind, into one line."""
        try:
            yield
        except InputError:
            raise
        except OF_VALUES as error:
            what = shortened(error, 300)
            raise InputError(
                f"run {self.path}: config.yaml does not describe a run: {what}"
            ) from error

    @contextlib.contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """Turn errors about a checkpoint that can be read, but does not fit, into one line that
        names the file.

        Args:
            name: of the checkpoint.
        """
        path, start = self.checkpoint_path(name), "checkpoint: "
        try:
            yield
        except InputError as error:
            if not str(error).startswith(start):
                raise
            message = str(error).removeprefix(start)
            raise InputError(f"checkpoint {path}: {message}") from error
        except OF_VALUES as error:
            raise InputError(
                f"checkpoint {path}: it does not fit this run: {reason(error)}; {USE_ANOTHER}"
            ) from error

    def check_there(self) -> None:
        """Refuse to write into a folder that is no longer the run's.

        Raises:
            InputError: the folder is gone, or another one is in its place.
        """
        try:
            found = os.stat(self.path / CONFIG if self._begun is not None else self.path)
            if self._begun is None or os.path.samestat(found, self._begun):
                return
        except OSError:
            pass
        raise InputError(
            f"run {self.path}: the folder was deleted, moved or replaced while it was in use, so "
            "nothing more is written; put it back, then continue: layerwise train --resume "
            f"{self.path}"
        )

    def log(self, message: str) -> None:
        """Append a line to log.txt."""
        if not self.writes:
            return
        now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        path = self.path / "log.txt"
        self.check_there()
        # A message may quote a name that is no text; it must not end a training.
        with disk_errors(path), open(path, "a", encoding="utf-8", errors="replace") as file:
            file.write(f"{now}  {message}\n")

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically: a crash leaves the old one."""
        if not self.writes:
            return
        path = self.path / name
        self.check_there()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)

    def add_metrics(self, row: Mapping[str, float | int | None]) -> None:
        """Append one epoch to metrics.csv; the first row's keys are the columns."""
        if not self.writes:
            return
        path = self.path / METRICS
        self.check_there()
        before = self._content(METRICS)
        with self._readable(METRICS):
            columns = rows.columns_of(before)
        if columns and columns != list(row):  # of another version: no value under another's name
            found = [*self.metrics(), row]
            columns = list(dict.fromkeys([*columns, *row]))
            self.write(METRICS, _table(columns, found, header=True))
            return
        with disk_errors(path):
            append(path, _table(list(row), [row], header=not columns))

    def metrics(self) -> list[dict[str, float | None]]:
        """The rows of metrics.csv; empty cells are None. A last row that is cut short is left out.

        Raises:
            InputError: the file cannot be read.
        """
        with self._readable(METRICS):
            return rows.read_metrics(self._content(METRICS))

    def keep_metrics(self, epochs: int) -> None:
        """Drop rows after the first `epochs`, and rows that are cut short.

        A run that was killed may have written the row of an epoch without its checkpoint. If more
        than this one row goes, or a row of the first `epochs` is missing, the file is also kept as
        it was, in a new folder set-aside-N.
        """
        if not self.writes:
            return
        content = self._content(METRICS)
        kept, left_out = rows.cut_metrics(content, epochs)
        if kept == content:
            return
        there = {int(row["epoch"] or 0) for row in rows.read_metrics(kept)}
        lacking = [epoch for epoch in range(1, epochs + 1) if epoch not in there]
        if lacking or len(left_out) > 1:
            folder = self.set_aside([METRICS])
            what = f"removed {len(left_out)} later rows" if left_out else "removed damaged rows"
            if lacking:
                what += f"; it has no row for {_numbered('epoch', lacking)}"
            self.log(f"{METRICS}: {what}; the file as it was is in {folder.name}")
        self.write(METRICS, kept)

    def add_line(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row to a file of one JSON object per line."""
        if not self.writes:
            return
        path = self.path / name
        self.check_there()
        with disk_errors(path):
            append(path, (json.dumps(row) + "\n").encode())

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The rows that `add_line` wrote to this file; an empty list if there is no such file. A
        last row that is cut short is left out.

        Raises:
            InputError: the file cannot be read.
        """
        with self._readable(name):
            return rows.read_lines(self._content(name))

    def keep_lines(self, name: str, step: int) -> None:
        """Drop the rows of `step` and of later steps, which will be written again, and rows that
        are cut short. If a row within the file is damaged, the file is also kept as it was, in a
        new folder set-aside-N."""
        if not self.writes:
            return
        content = self._content(name)
        kept, damaged = rows.cut_lines(content, step)
        if kept == content:
            return
        if damaged:
            folder = self.set_aside([name])
            self.log(
                f"{name}: removed {damaged} damaged rows; the file as it was is in {folder.name}"
            )
        self.write(name, kept)

    def _content(self, name: str) -> bytes:
        """The bytes of a file; none if there is no such file."""
        path = self.path / name
        with self._readable(name):
            if not os.path.lexists(path):
                return b""
            if path.exists() and not path.is_file():  # reading a named pipe would wait for ever
                raise OSError("not a file")
            return path.read_bytes()

    @contextlib.contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"run {self.path}: {name} cannot be read: {reason(error)}") from error

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write checkpoints/`name`.safetensors atomically.

        Args:
            name: such as "last".
            state: nested mappings, lists, numbers, strings and tensors.
        """
        self.write(f"checkpoints/{name}.safetensors", pack(state))

    def load(self, name: str) -> dict[str, Any] | None:
        """The state that `save` wrote under this name, or None if there is none."""
        path = self.checkpoint_path(name)
        return read_checkpoint(path) if os.path.lexists(path) else None

    def checkpoint_path(self, name: str) -> Path:
        """The file of a checkpoint.

        Args:
            name: such as "last"; or the path of a file in this run's folder, seen from there or
                from the current folder.

        Raises:
            InputError: the path leads out of the run's folder.
        """
        if name.isprintable() and not {"/", os.sep} & {*name} and name not in ("", ".", ".."):
            inside = self.path / name
            if name.endswith(".safetensors") and os.path.isfile(inside):
                return inside
            return self.checkpoints / f"{name}.safetensors"
        root = os.path.abspath(self.path)
        places = [os.path.abspath(self.path / name), os.path.abspath(name)]
        inside = [p for p in places if os.path.commonpath([p, root]) == root and p != root]
        if not name.isprintable() or not inside:
            raise InputError(
                f"--checkpoint {ascii(name)[1:-1]}: not in the folder {self.path}; give the name "
                f"of one of its checkpoints: {self._names()}"
            )
        found = next((p for p in inside if os.path.isfile(p)), inside[0])
        return self.path / os.path.relpath(found, root)

    def checkpoint(self, name: str) -> dict[str, Any]:
        """The state that `save` wrote under this name.

        Raises:
            InputError: there is none.
        """
        state = self.load(name)
        if state is None:
            raise InputError(
                f"--checkpoint {name}: {self.path} has no such checkpoint; there is: "
                f"{self._names()}"
            )
        return state

    def _names(self) -> str:
        there = sorted(path.stem for path in self.checkpoints.glob("[!.]*.safetensors"))
        return ", ".join(there) or "no checkpoint yet"

    def check_start(self) -> None:
        """Refuse to train from the start where epochs were trained before.

        A training that is killed in its first epoch has no checkpoint. If it is killed just after
        it, it may also have a row of metrics, which is written again.

        Raises:
            InputError: there is more: the last checkpoint is missing.
        """
        epochs = len(rows.cut_metrics(self._content(METRICS), 1 << 63)[0].splitlines()) - 1
        if epochs <= 1 and not (self.path / NETWORK).exists():
            return
        there = self._names()
        known = "put it back"
        if self.checkpoints.is_dir() and there != "no checkpoint yet":
            name = "best" if "best" in there.split(", ") else there.split(", ")[0]
            known += f", or continue from another: layerwise train --resume {self.path} "
            known += f"--checkpoint {name}"
        raise InputError(
            f"run {self.path}: checkpoints/last.safetensors is missing, though the run has trained "
            f"{max(1, epochs)} epochs, which are never overwritten; {known}"
        )

    def go_back_to(self, name: str) -> None:
        """Make another checkpoint the last one, so that training continues from there.

        Everything that the training has written so far is also kept in a new folder set-aside-N.

        Args:
            name: as of `checkpoint_path`.

        Raises:
            InputError: no such checkpoint, or it cannot be read; the disk cannot be written.
        """
        state, last = self.checkpoint(name), self.checkpoint_path("last")
        chosen = self.checkpoint_path(name)
        content = chosen.read_bytes()
        if not self.writes or (last.is_file() and last.read_bytes() == content):
            return
        folder = self.set_aside([name for name in TRAINED if os.path.lexists(self.path / name)])
        self.log(f"goes back to {name}, epoch {state['epoch']}; all files are in {folder.name}")
        # From here on the run goes on from the chosen one, even if it is killed at once.
        self.write("checkpoints/last.safetensors", content)
        with disk_errors(self.path):
            (self.path / NETWORK).unlink(missing_ok=True)
            for number, path in self.outcomes().items():
                if number > state["epoch"]:
                    path.unlink()
            if self._epoch_of("best") > state["epoch"]:
                self.checkpoint_path("best").unlink(missing_ok=True)

    def rewrite_config(self, config: Mapping[str, Any], reason: str) -> None:
        """Change the config of a run whose training goes on otherwise than it was begun, and which
        is unfinished from then on. All its files are also kept as they were, in a new folder
        set-aside-N.

        Args:
            config: all options.
            reason: of the change, for the log.

        Raises:
            InputError: another process trains the run; the disk cannot be written.
        """
        if not self.writes:
            return
        with self.locked():
            there = [n for n in (CONFIG, *TRAINED) if os.path.lexists(self.path / n)]
            folder = self.set_aside(there)
            self.log(f"{reason}; all files as they were are in {folder.name}")
            with disk_errors(self.path):
                (self.path / NETWORK).unlink(missing_ok=True)
            self.write(CONFIG, yaml.safe_dump(dict(config), sort_keys=False).encode())

    def _epoch_of(self, name: str) -> float:
        """Epochs that a checkpoint had completed; infinite if it cannot be read."""
        try:
            state = self.load(name)
            return -1 if state is None else state["epoch"]
        except (InputError, KeyError):
            return float("inf")

    def outcomes(self) -> dict[int, Path]:
        """The files in outcomes/ by their epoch, in order."""
        found = {
            int(match[1]): path
            for path in (self.path / OUTCOMES).glob("epoch-*.safetensors")
            if (match := re.fullmatch(r"epoch-([0-9]{1,18})\.safetensors", path.name))
        }
        return dict(sorted(found.items()))

    def set_aside(self, names: Sequence[str]) -> Path:
        """Keep files and folders of the run, as they are now, in a new folder set-aside-N.

        Args:
            names: of files and folders in the run's folder.

        Returns:
            The new folder.
        """
        self.check_there()
        with disk_errors(self.path):
            folder = claim_numbered(self.path, "set-aside")
            for name in names:
                copy = shutil.copy2 if name in GROWING else _same_or_copied
                if (self.path / name).is_dir():
                    shutil.copytree(self.path / name, folder / name, copy_function=copy)
                else:
                    copy(self.path / name, folder / name)
        return folder


def check_name(root: Path, name: str | None) -> None:
    """Refuse names that a run folder cannot have, before anything is trained.

    Args:
        root: the folder of all runs.
        name: of the run folder; None for a name that is made up.

    Raises:
        InputError: such a name, or there is a folder of that name.
    """
    if not str(root).isprintable():
        raise InputError(f"--runs {str(root)!a}: not text that can be printed; give another")
    if name is None:
        return
    shown = ascii(name)[1:-1] if not name.isprintable() else name
    if not name or not name.isprintable() or {"/", "\\", os.sep} & {*name} or name in (".", ".."):
        raise InputError(
            f"--name {shown or repr(name)}: give the name of one folder: text without slashes that "
            "can be printed; --runs gives the folder that it is made in"
        )
    if (size := len(name.encode())) > LONGEST_NAME:
        raise InputError(
            f"--name {shown[:20]}...: {size} bytes; give a name of at most {LONGEST_NAME}"
        )
    if os.path.lexists(root / name):
        raise _taken(root, name)


def _taken(root: Path, name: str) -> InputError:
    return InputError(
        f"--name {name}: {root / name} exists already and is never overwritten; give another name, "
        f"or continue it: layerwise train --resume {root / name}"
    )


def _table(columns: Sequence[str], found: Sequence[Mapping[str, Any]], header: bool) -> bytes:
    lines = io.StringIO()
    writer = csv.DictWriter(lines, fieldnames=columns)
    if header:
        writer.writeheader()
    writer.writerows(found)
    return lines.getvalue().encode()


def _numbered(word: str, numbers: Sequence[int]) -> str:
    """[3] as "epoch 3", [3, 4] as "epochs 3, 4"."""
    return f"{word}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _same_or_copied(source: str | Path, target: str | Path) -> None:
    """A second name for a file that is never changed in place; a copy where there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def with_names_of_today(config: dict[str, Any]) -> dict[str, Any]:
    """A run's options, with the names that they have today: `HPFF` was `Overlap(independent=w)`."""
    rule = config.get("rule")
    if not isinstance(rule, dict) or rule.get("name") != "Overlap" or "independent" not in rule:
        return config
    if rule["independent"]:
        return {**config, "rule": {**rule, "name": "HPFF"}}
    return {**config, "rule": {k: v for k, v in rule.items() if k != "independent"}}
