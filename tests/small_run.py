"""A small run, and commands in this process."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

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


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Drawing takes longer than all else."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "draw_run", lambda run: None)
        patched.setattr(comparison, "draw_runs", lambda *given: None)
        patched.setattr(comparison, "draw_blocks", lambda *given: None)
        patched.setattr(analysis_figures, "_png", lambda figure: b"none")
        yield
