"""The run folder: whole files or none, one line for what the disk refuses, nothing unpickled."""

from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch

import layerwise
from layerwise.errors import InputError
from layerwise.runs import checkpoint_file
from layerwise.runs import files as disk
from layerwise.runs.files import write_new
from layerwise.runs.run import Run

STATE = {
    "step": 3,
    "lr": 0.1,
    "none": None,
    "name": "x",
    "flags": [True, False],
    "empty": {},
    "optimizer": {"state": {0: {"momentum": torch.arange(4.0)}, 7: {}}, "betas": (0.9, 0.999)},
    "bf16": torch.ones(2, 3, dtype=torch.bfloat16),
    "int": torch.tensor(5),
    "nothing": torch.empty(0, 4),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path, "run", "", {"epochs": 1})


def files(run: Run) -> set[str]:
    return {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}


def test_a_checkpoint_comes_back_as_it_was(run):
    shared = torch.randn(4)
    run.save("last", STATE | {"a": shared, "b": shared})
    back = run.load("last")
    assert torch.equal(back["a"], shared)
    assert torch.equal(back["b"], shared)
    assert back["optimizer"]["state"].keys() == {0, 7}
    assert torch.equal(back["optimizer"]["state"][0]["momentum"], torch.arange(4.0))
    assert back["optimizer"]["betas"] == [0.9, 0.999]
    for key in ("step", "lr", "none", "name", "flags", "empty"):
        assert back[key] == STATE[key]
    for key in ("bf16", "int", "nothing", "channels_last"):
        assert back[key].dtype == STATE[key].dtype
        assert torch.equal(back[key], STATE[key])


def test_there_is_no_checkpoint_before_the_first(run):
    assert run.load("last") is None


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
def test_a_crash_while_writing_leaves_the_old_checkpoint(run, monkeypatch, call):
    run.save("last", {"step": 1})
    there = files(run)

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, crash)
    with pytest.raises(KeyboardInterrupt):
        run.save("last", {"step": 2})
    assert run.load("last") == {"step": 1}
    assert files(run) == there


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_gives_one_line_and_loses_nothing(run, monkeypatch, call, code):
    row = {"epoch": 1, "train_loss": 0.5}
    run.save("last", {"step": 1})
    run.add_metrics(row)
    there = files(run)

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(InputError, match=os.strerror(code)) as error:
        run.save("last", {"step": 2})
    assert "\n" not in str(error.value)
    if call == "fsync":
        with pytest.raises(InputError, match=os.strerror(code)):
            run.add_metrics(row | {"epoch": 2})
    assert run.load("last") == {"step": 1}
    assert run.metrics() == [row]
    assert files(run) == there


def test_a_disk_that_takes_half_leaves_no_half(run, monkeypatch):
    """A write that comes back short, then fails, as at the end of a full disk."""
    run.add_metrics({"epoch": 1})
    before = (run.path / "metrics.csv").read_bytes()

    class Full:
        def __init__(self, file):
            self.file, self.calls = file, 0

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            self.calls += 1
            if self.calls > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(content[: len(content) // 2])

    write_all = disk._write_all
    monkeypatch.setattr(disk, "_write_all", lambda file, content: write_all(Full(file), content))
    with pytest.raises(InputError, match="No space"):
        run.add_metrics({"epoch": 2})
    assert (run.path / "metrics.csv").read_bytes() == before
    with pytest.raises(InputError, match="No space"):
        run.save("last", STATE)
    assert run.load("last") is None


def test_what_a_killed_process_was_writing_is_swept(run):
    run.checkpoints.mkdir()
    for name in (".metrics.csv.abc.part", "checkpoints/.last.safetensors.x.part"):
        (run.path / name).write_bytes(b"half")
    kept = files(run)
    with run.locked():
        assert files(run) == {name for name in kept if not name.endswith(".part")}


def test_the_lock(run):
    """One process at a time; nothing is left of it, and nothing is changed."""
    before = (run.path / "config.yaml").read_bytes()
    with (
        run.locked(),
        pytest.raises(InputError, match="another process is training it"),
        Run(run.path).locked(),
    ):
        pass
    with run.locked():
        pass
    assert files(run) == {"config.yaml"}
    assert (run.path / "config.yaml").read_bytes() == before


def test_a_folder_that_cannot_be_locked_gives_one_line(run):
    (run.path / "config.yaml").unlink()
    (run.path / "config.yaml").mkdir()
    with pytest.raises(InputError, match="cannot write"), run.locked():
        pass


def test_names_are_never_given_twice(tmp_path):
    Run.create(tmp_path, "a", "stem", {})
    with pytest.raises(InputError, match=r"--name a: .*never overwritten.*--resume"):
        Run.create(tmp_path, "a", "stem", {})
    paths = [Run.create(tmp_path, None, "stem", {}).path.name for _ in range(3)]
    assert paths == ["stem-1", "stem-2", "stem-3"]


def test_runs_started_at_once_get_different_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: disk.claim_numbered(tmp_path, "run"), range(40)))
    assert {path.name for path in folders} == {f"run-{n}" for n in range(1, 41)}


def test_a_folder_whose_config_cannot_be_written_is_not_left(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match="No space"):
        Run.create(tmp_path, "run", "", {})
    assert list(tmp_path.iterdir()) == []


def test_rows_beyond_the_checkpoint_are_dropped(run):
    for epoch in (1, 2, 3):
        run.add_metrics({"epoch": epoch, "loss": 1 / epoch, "none": None})
    with open(run.path / "metrics.csv", "a") as file:
        file.write("4,0.")  # killed in the middle of a row
    run.keep_metrics(2)
    assert run.metrics() == [
        {"epoch": 1, "loss": 1.0, "none": None},
        {"epoch": 2, "loss": 0.5, "none": None},
    ]
    run.keep_metrics(0)
    run.add_metrics({"epoch": 1, "other": 3.0})
    assert run.metrics() == [{"epoch": 1, "other": 3.0}]


def test_half_a_header_is_dropped(run):
    (run.path / "metrics.csv").write_text("epoch,lo")
    run.keep_metrics(0)
    run.add_metrics({"epoch": 1, "loss": 0.1})
    assert run.metrics() == [{"epoch": 1, "loss": 0.1}]


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _foreign(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(2)}, path)


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"rule": [1, 2, 3]}))


def _saved_by_torch(path: Path) -> None:
    torch.save({"rule": torch.ones(3)}, path)


def _noise(path: Path) -> None:
    path.write_bytes(os.urandom(500))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _wrong_state(path: Path) -> None:
    about = {"format": checkpoint_file.FORMAT, "state": '{"mapping": 3}'}
    path.write_bytes(safetensors.torch.save({}, metadata=about))


BROKEN = [_truncated, _foreign, _pickled, _saved_by_torch, _noise, _empty, _folder, _wrong_state]


@pytest.mark.parametrize("breaks", BROKEN)
def test_a_file_that_is_no_checkpoint_gives_one_line(run, breaks):
    run.save("last", STATE)
    breaks(run.checkpoints / "last.safetensors")
    with pytest.raises(InputError, match=r"checkpoint .*last\.safetensors: ") as error:
        run.load("last")
    assert "\n" not in str(error.value)


def test_nothing_is_unpickled_anywhere():
    """`torch.load`, pickle and their kin are not called, nor imported, by the library."""
    forbidden = re.compile(
        r"torch\.load|torch\.package|load_state_dict_from_url|^\s*(import|from) (pickle|dill|joblib"
        r"|shelve|marshal)|pickle\.load|allow_pickle=True|yaml\.(unsafe_|full_)?load\(|\beval\(|"
        r"\bexec\(",
        re.MULTILINE,
    )
    for path in Path(layerwise.__file__).parent.rglob("*.py"):
        text = re.sub(r"\.eval\(|def eval\(", "", path.read_text())
        assert not forbidden.search(text), f"{path}: {forbidden.search(text)}"


def test_a_file_that_is_there_is_not_written_anew(tmp_path):
    write_new(tmp_path / "sub" / "a.json", b"1", "--out")
    with pytest.raises(InputError, match="never overwritten"):
        write_new(tmp_path / "sub" / "a.json", b"2", "--out")
    assert (tmp_path / "sub" / "a.json").read_bytes() == b"1"


@pytest.mark.slow
def test_a_disk_that_is_full(tmp_path):
    """A file system of 1 MB: the second checkpoint does not fit beside the first."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount")
    try:
        run = Run.create(disk, "run", "", {})
        run.save("last", {"w": torch.zeros(150_000)})
        there = files(run)
        with pytest.raises(InputError, match="No space left"):
            run.save("last", {"w": torch.ones(150_000)})
        assert torch.equal(run.load("last")["w"], torch.zeros(150_000))
        assert files(run) == there
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(InputError, match="Read-only"):
            run.save("last", {"step": 1})
        with pytest.raises(InputError, match="Read-only"), run.locked():
            pass
        with pytest.raises(InputError, match="Read-only"):
            Run.create(disk, "other", "", {})
        assert files(run) == there
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_a_system_without_file_locks(run, monkeypatch):
    """Windows has no fcntl."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with run.locked(), run.locked():
        run.save("last", {"step": 1})
    assert run.load("last") == {"step": 1}
