"""A small run that is trained once, and copies of it to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_run import TRAIN, Result, call, undrawn


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with every file that is read back."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with undrawn():
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
    with undrawn():
        yield Path("run")


@pytest.fixture
def cli() -> Callable[..., Result]:
    return call
