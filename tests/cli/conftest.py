"""The command line in this process, in a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from layerwise.cli import main
from layerwise.experiment import training
from layerwise.report import (
    analysis_figures,
    comparison,
    console,  # noqa: F401 (the consoles are made before the terminal is a narrow one)
)

TINY = (
    "--model mlp --model.layers 2 --model.width 12 --blocks 2 --epochs 2 --batch_size 200 "
    "--device cpu --optimizer.lr 0.1"
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "40")  # a narrow terminal


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`cli("train --epochs 2")`, or its words one by one."""

    def run(*arguments: str) -> Result:
        words = arguments[0].split() if len(arguments) == 1 else arguments
        capsys.readouterr()
        try:
            code = main(list(words))
        except SystemExit as end:  # --help
            code = int(end.code or 0)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training."""
    monkeypatch.setattr(training, "draw_run", lambda run: None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of analyses are made, but their files hold none; those of comparisons are not."""
    monkeypatch.setattr(analysis_figures, "_png", lambda figure: b"none")
    for drawing in ("draw_runs", "draw_blocks"):
        monkeypatch.setattr(comparison, drawing, lambda *given: None)


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Where a run of that name and those options is kept for other tests."""
    folder, numbers = tmp_path_factory.mktemp("kept"), dict[tuple[str, str], int]()
    return lambda name, options: folder / str(numbers.setdefault((name, options), len(numbers)))


@pytest.fixture
def trained(
    cli: Callable[..., Result], kept: Callable[[str, str], Path], no_pictures: None
) -> Callable[..., Path]:
    """`trained("name", "--more options")`: the folder of a tiny run, which is trained once for all
    tests. With `fresh` it is trained for this one."""

    def run(name: str, options: str = "", fresh: bool = False) -> Path:
        path, copy = Path("runs") / name, kept(name, options)
        if fresh or not copy.exists():
            result = cli(f"train {TINY} --runs runs --name {name} {options}")
            assert result.code == 0, result.err
            if not fresh:
                shutil.copytree(path, copy)
        else:
            shutil.copytree(copy, path)
        return path

    return run
