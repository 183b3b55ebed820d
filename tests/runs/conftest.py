"""A small run that is trained once, and commands on damaged copies of it."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from layerwise.cli import main
from layerwise.experiment import training
from layerwise.report import analysis_figures, comparison

TRAIN = (
    "train --data digits --model mlp --model.layers 2 --model.width 12 --blocks 2 --epochs 3 "
    "--batch_size 200 --device cpu --pictures 0 --alignment_every 5 --outcomes true"
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The last line on stderr."""
        return (self.err.splitlines() or [""])[-1]


def call(*arguments: str) -> Result:
    """Run a command in this process. A traceback is an exception here."""
    words = arguments[0].split() if len(arguments) == 1 else arguments
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with every file that is read back."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with _undrawn():
        done = call(f"{TRAIN} --runs {folder.parent} --name run")
        assert done.code == 0, done.err
        assert call(f"evaluate {folder} --split train --losses true").code == 0
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, seen from its parent folder: "run"."""
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    with _undrawn():
        yield Path("run")


@pytest.fixture
def cli() -> Callable[..., Result]:
    return call


@contextlib.contextmanager
def _undrawn() -> Iterator[None]:
    """Drawing takes longer than all else."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "draw_run", lambda run: None)
        patched.setattr(comparison, "draw_runs", lambda metrics, write: None)
        patched.setattr(comparison, "draw_blocks", lambda metrics, write: None)
        patched.setattr(analysis_figures, "_png", lambda figure: b"none")
        yield
