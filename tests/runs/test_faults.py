"""Faults of disks, users and terminals, one by one: nothing is lost, one line says what is wrong.

`tests/runs/test_damaged_runs.py` tries damaged files in general.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small_run import TRAIN

from layerwise.errors import InputError
from layerwise.experiment import training
from layerwise.runs import checkpoint_file, rows
from layerwise.runs.checksum import save_checked
from layerwise.runs.run import Run
from layerwise.trainer import Trainer

LAST = "checkpoints/last.safetensors"


def files(run: Path) -> dict[str, bytes]:
    """All files but those that grow or are drawn."""
    there = {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    return {name: content for name, content in there.items() if name != "log.txt"}


def timeless(run: Path) -> list[dict[str, float | None]]:
    times = ("seconds", "images_per_s")
    return [{k: v for k, v in row.items() if k not in times} for row in Run(run).metrics()]


# ------------------------------------------------------------------------ checksums


def test_every_flipped_bit_in_a_checkpoint_is_noticed(run, cli):
    """In the tensors, in the state beside them, and in the header."""
    path = run / LAST
    whole = path.read_bytes()
    for k in range(300):
        byte = k * len(whole) // 300
        path.write_bytes(
            whole[:byte] + bytes([whole[byte] ^ (1 << k % 8)]) + whole[byte + 1 :],
        )
        with pytest.raises(InputError, match=r"checkpoint .*last\.safetensors: "):
            Run(run).load("last")
    middle = len(whole) - 1000  # a weight, or a sum of the optimizer
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    for command in ("train --resume run", "evaluate run", "analyze run --questions extent"):
        result = cli(command)
        assert result.code == 2
        assert "checksum is wrong" in result.line


def test_a_flipped_bit_in_recorded_outcomes_is_noticed(run, cli):
    path = run / "outcomes/epoch-002.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # right or wrong of the last image
    result = cli("analyze run --questions difficulty")
    assert (result.code, "checksum is wrong" in result.line) == (2, True)


def test_a_checkpoint_of_an_earlier_version_has_no_checksum(run, cli):
    state = checkpoint_file.read_checkpoint(run / LAST)
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(checkpoint_file._pack(state, "", tensors))
    about = {"format": "layerwise-checkpoint-1", "state": text}
    (run / LAST).write_bytes(safetensors.torch.save(tensors, metadata=about))
    for command in ("train --resume run", "evaluate run"):
        assert cli(command).code == 0


def test_a_checkpoint_of_a_later_version(run, monkeypatch):
    state = checkpoint_file.read_checkpoint(run / LAST)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_file, "FORMAT", "layerwise-checkpoint-3")
        content = checkpoint_file.pack(state)
    (run / LAST).write_bytes(content)
    with pytest.raises(InputError, match=r"layerwise-checkpoint-3.*use the version that wrote it"):
        Run(run).load("last")


def test_a_checkpoint_that_is_overwritten_while_it_is_used(run):
    """Tensors that were mapped from the file would end the process with SIGBUS."""
    state = Run(run).load("last")
    (run / LAST).write_bytes(b"")
    assert all(bool(t.isfinite().all()) for t in state["rule"].values())


# ------------------------------------------------------------------------ which checkpoint


def test_a_missing_last_checkpoint_never_starts_over(run, cli):
    (run / LAST).unlink()
    before = files(run)
    result = cli("train --resume run")
    assert result.code == 2
    assert "checkpoints/last.safetensors is missing" in result.line
    assert "layerwise train --resume run --checkpoint best" in result.line
    (run / "checkpoints/best.safetensors").unlink()
    result = cli("train --resume run")
    assert (result.code, "put it back" in result.line) == (2, True)
    assert {k: v for k, v in before.items() if "best" not in k} == files(run)


def test_going_back_to_another_checkpoint(run, whole, cli, monkeypatch):
    """The run trains on from there to the same bits, and keeps what it had."""
    with monkeypatch.context() as patched:  # a run that stopped after epoch 1, with the same bits
        patched.setattr(Run, "add_metrics", _stops_at(2, Run.add_metrics))
        with pytest.raises(KeyError):
            training.train(Run(whole).config, runs=".", name="early")
    first = Path("early") / LAST
    assert Run.open("early").load("last")["epoch"] == 1
    shutil.copy(first, run / "checkpoints/first.safetensors")
    before, rows_before = files(run), timeless(run)
    result = cli("train --resume run --checkpoint first")
    assert result.code == 0, result.err
    after = files(run)
    for name, content in before.items():
        if name.partition("/")[0] in ("metrics.csv", "alignment.jsonl", "checkpoints", "outcomes"):
            assert after[f"set-aside-1/{name}"] == content
    for name in ("alignment.jsonl", "model.safetensors", "outcomes/epoch-003.safetensors"):
        assert after[name] == before[name]
    assert timeless(run) == rows_before
    assert Run(run).load("last")["epoch"] == 3
    assert (
        "goes back to first, epoch 1; all files are in set-aside-1"
        in Path(run / "log.txt").read_text()
    )


def test_going_back_and_killed_before_the_first_step(run, cli, monkeypatch):
    """The metrics are cut back already; the run continues from the same checkpoint."""
    shutil.copy(run / "checkpoints/best.safetensors", "kept.safetensors")
    state = Run(run).load("best")
    state |= {"epoch": 2, "step": 12}
    Run(run).save("second", state)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "fit", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            training.resume("run", checkpoint="second")
    assert len(Run(run).metrics()) == 2
    assert Run(run).load("last")["epoch"] == 2
    assert cli("train --resume run").code == 0
    assert [row["epoch"] for row in Run(run).metrics()] == [1, 2, 3]


def _stops_at(epoch, add):
    def added(run, row):
        if row["epoch"] == epoch:
            raise KeyError
        add(run, row)

    return added


@pytest.mark.parametrize("command", ["evaluate run", "train --resume run", "analyze run"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../x", "not in the folder run"),
        ("/etc/passwd", "not in the folder run"),
        ("../../run/checkpoints/last", "not in the folder run"),
        ("..", "not in the folder run"),
        ("nix", "no such checkpoint; there is: best, last"),
        ("checkpoints/nix.safetensors", "no such checkpoint"),
        ("model.safetensors", "not a checkpoint of layerwise"),
        ("metrics.csv", "no such checkpoint"),
        ("checkpoints", "no such checkpoint"),
        ("\udcff", "not text in UTF-8"),
    ],
)
def test_a_checkpoint_is_inside_the_run(command, name, says, run, cli):
    Path("x.safetensors").write_bytes((run / LAST).read_bytes())
    before = files(run)
    result = cli(*command.split(), "--checkpoint", name)
    assert (result.code, says in result.line) == (2, True), result.err
    assert files(run) == before


@pytest.mark.parametrize("name", ["last", f"run/{LAST}", LAST, "best"])
def test_names_of_a_checkpoint(name, run, cli):
    assert cli("evaluate", "run", "--checkpoint", name).code == 0
    assert (run / f"evaluation-test-{'best' if name == 'best' else 'last'}.json").is_file()


# ------------------------------------------------------------------------ rows cut short


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_last_row_that_is_cut_short(cut, run, cli):
    """Power was lost while the third row was written: the file system kept a part of it."""
    state = Run(run).load("last") | {"epoch": 2, "step": 12}
    Run(run).save("last", state)
    (run / "model.safetensors").unlink()
    for name in ("metrics.csv", "alignment.jsonl"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[:-cut])
    assert [row["epoch"] for row in Run(run).metrics()] == [1, 2]
    assert cli("compare run --out out").code == 0
    result = cli("train --resume run")
    assert (result.code, result.line) == (0, "done: run")
    assert [row["epoch"] for row in Run(run).metrics()] == [1, 2, 3]
    assert [row["step"] for row in Run(run).lines("alignment.jsonl")] == [0, 5, 10, 15]
    assert not list(run.glob("set-aside-*"))  # the row is written again


@pytest.mark.parametrize("ending", [b"", b"\0" * 50, b"\0" * 50 + b"\n"])
def test_a_row_that_is_lost_although_its_checkpoint_is_there(ending, run, cli):
    for name in ("metrics.csv", "alignment.jsonl"):
        (run / name).write_bytes((run / name).read_bytes()[:-20] + ending)
    torn = (run / "metrics.csv").read_bytes()
    result = cli("train --resume run")
    assert (result.code, result.line) == (0, "done: run")
    assert [row["epoch"] for row in Run(run).metrics()] == [1, 2]
    kept = next(run.glob("set-aside-*/metrics.csv"))
    assert kept.read_bytes() == torn
    assert (
        f"no row for epoch 3; the file as it was is in {kept.parent.name}"
        in (run / "log.txt").read_text()
    )
    assert cli("compare run --out out").code == 0


@pytest.mark.parametrize("name", ["metrics.csv", "alignment.jsonl"])
def test_a_file_of_rows_cut_at_every_length(name, run):
    whole = (run / name).read_bytes()
    read = rows.read_metrics if name == "metrics.csv" else rows.read_lines
    everything = read(whole)
    for length in range(len(whole)):
        found = read(whole[:length])
        assert found == everything[: len(found)]
        if name == "metrics.csv":
            kept, left_out = rows.cut_metrics(whole[:length], 2)
            assert read(kept) == found[:2]
            assert left_out == [3][: len(found) - 2] if len(found) > 2 else not left_out
        else:
            kept, _ = rows.cut_lines(whole[:length], 11)
            assert read(kept) == [row for row in found if row["step"] < 11]


def test_columns_of_another_version(tmp_path):
    """No value is written under the name of another."""
    run = Run.create(tmp_path, "run", "", {})
    run.add_metrics({"epoch": 1, "loss": 0.5, "old": 2.0})
    run.add_metrics({"epoch": 2, "new": 3.0, "loss": 0.25})
    assert run.metrics() == [
        {"epoch": 1, "loss": 0.5, "old": 2.0, "new": None},
        {"epoch": 2, "loss": 0.25, "old": None, "new": 3.0},
    ]


# ------------------------------------------------------------------------ the folder


@pytest.mark.parametrize("what", ["deleted", "moved", "replaced"])
def test_a_folder_that_is_gone_while_the_run_trains(what, cli, tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    finish = Trainer._finish_step

    def finish_step(self):
        finish(self)
        if self.position.step == 8:
            os.rename("gone", "elsewhere")
            if what == "replaced":
                shutil.copytree(whole, "gone")
            if what == "deleted":
                shutil.rmtree("elsewhere")

    monkeypatch.setattr(Trainer, "_finish_step", finish_step)
    result = cli(f"{TRAIN} --runs . --name gone")
    assert result.code == 2
    assert "done" not in result.err
    assert "run gone: the folder was deleted, moved or replaced" in result.line
    assert Path("gone").exists() == (what == "replaced")
    if what == "replaced":
        assert files(Path("gone")) == files(whole)
    if what == "moved":
        assert Run.open("elsewhere").load("last")["epoch"] == 1


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../a", "/a", "a\\b", "a\0b", "\udcff", "a\nb", "x" * 256, "é" * 128],
)
def test_a_name_that_no_folder_can_have(name, cli, tmp_path, monkeypatch):
    """Refused before the data are loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training.Prepared, "of", lambda config: 1 / 0)
    result = cli(*TRAIN.split(), "--runs", "runs", f"--name={name}")
    assert result.code == 2
    said = ("layerwise train: --name ", "layerwise train: '")  # what is no text is refused before
    assert result.line.startswith(said)
    assert result.err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_name_that_is_taken_is_refused_before_the_data_are_loaded(run, cli, monkeypatch):
    monkeypatch.setattr(training.Prepared, "of", lambda config: 1 / 0)
    result = cli(f"{TRAIN} --runs . --name run")
    assert (result.code, "never overwritten" in result.line) == (2, True)


def test_a_data_folder_with_a_name_that_is_no_text():
    config = {"data": {"name": "folder:/d/\udcff" + "x" * 300}, "model": {"name": "mlp"}}
    stem = training._stem(config | {"rule": {"name": "DGL"}})
    assert stem.isprintable()
    assert len(stem.encode()) <= 240


@pytest.mark.parametrize(("losses", "code"), [("false", 0), ("true", 2)])
def test_evaluating_a_run_that_cannot_be_written(losses, code, run, cli, monkeypatch):
    """The table is the result, unless a file was asked for."""

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("layerwise.runs.run.write_atomically", refuse)
    result = cli(f"evaluate run --losses {losses}")
    assert "accuracy, %" in result.out
    assert result.code == code
    assert result.err.count("\n") == 1
    assert result.line.startswith("layerwise evaluate: the table was not saved: ") == (code == 0)
    assert "cannot write run/evaluation-test-last.json: Read-only file system" in result.line


def test_an_earlier_evaluation_is_kept(run, cli):
    """The same result is written once; another one gets a number."""
    path = run / "evaluation-test-last.json"
    for _ in range(2):
        assert cli("evaluate run").code == 0
    assert not (run / "evaluation-test-last-2.json").exists()
    first = path.read_bytes()
    state = Run(run).load("last")  # as after further training
    state["rule"] = {name: weight + 1 for name, weight in state["rule"].items()}
    Run(run).save("last", state)
    for _ in range(2):
        result = cli("evaluate run")
        assert (result.code, "evaluation-test-last-2.json" in result.out) == (0, True)
    assert path.read_bytes() == first
    assert not (run / "evaluation-test-last-3.json").exists()


# ------------------------------------------------------------------------ outcomes


def test_more_than_999_epochs(run, cli):
    """By number, not by name: "epoch-1000" sorts before "epoch-999"."""
    shutil.rmtree(run / "outcomes")
    (run / "outcomes").mkdir()
    n = 1294  # training images
    for epoch in range(1, 1002):
        right = torch.full((n,), epoch <= 1000)  # learned at once, forgotten after the last epoch
        content = save_checked({"losses": torch.zeros(n), "right": right})
        (run / f"outcomes/epoch-{epoch:03d}.safetensors").write_bytes(content)
    assert list(Run(run).outcomes()) == list(range(1, 1002))
    result = cli("analyze run --questions difficulty")
    assert result.code == 0, result.err
    found = json.loads((run / "analysis-1/analysis.json").read_text())["runs"][0]["difficulty"]
    assert (found["forgotten"], found["unforgettable"]) == (n, 0)
    tensors = safetensors.torch.load_file(run / "analysis-1/difficulty.safetensors")
    assert set(tensors["forgotten"].tolist()) == {1}


def test_outcomes_of_an_epoch_are_missing(run, cli):
    (run / "outcomes/epoch-002.safetensors").unlink()
    result = cli("analyze run --questions difficulty")
    assert (result.code, "lacks the file of epoch 2" in result.line) == (2, True)


# ------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--stages [", "--stages [: give a whole number or null"),
        ("--stages 1.5", "--stages 1.5: give a whole number or null"),
        ("--stages 1e400", "--stages 1e400: give a whole number or null"),
        ("--stages", "--stages: give a whole number or null"),
        ("--replicas !!python/object:x", "--replicas !!python/object:x: give a whole number"),
        ("--device", "--device: give cpu"),
        ("--device {a", "--device {a: this machine has no such device"),
        ("--runtime serial,", "--runtime 'serial,': give auto or serial or layer_parallel"),
        ("--stages 0", "--stages 0: give at least 1"),
        ("--checkpoint", "--checkpoint: give last, best or a file"),
        ("--seed 3", "--resume contradicts --seed"),
        ("--epochs 1000", "depends on the number of epochs"),
    ],
)
def test_a_wrong_option_does_not_blame_the_run(options, says, run, cli):
    before = files(run)
    result = cli(f"train --resume run {options}")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert says in result.line
    assert "config.yaml" not in result.line
    assert files(run) == before


def test_a_checkpoint_without_a_run_to_continue(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli(f"{TRAIN} --runs runs --checkpoint best")
    assert (result.code, "--checkpoint best: only with --resume" in result.line) == (2, True)
    assert not Path("runs").exists()


# ------------------------------------------------------------------------ signals and terminals


@contextlib.contextmanager
def started(line: str, **options: Any) -> Iterator[subprocess.Popen]:
    words = [sys.executable, "-m", "layerwise", *line.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, bufsize=0, **pipes, **options) as process:
        try:
            yield process
        finally:
            process.kill()


LONG = TRAIN.replace("--epochs 3", "--epochs 100000") + " --alignment_every 0 --outcomes false"


def wait_for_an_epoch(run: Path, process: subprocess.Popen) -> None:
    limit = time.time() + 120
    while not (run / LAST).exists():
        assert process.poll() is None
        assert time.time() < limit
        time.sleep(0.05)


@pytest.mark.slow
def test_a_terminal_that_is_closed(tmp_path):
    """SIGHUP, twice as some shells send it; nothing can be written to the terminal."""
    with started(f"{LONG} --runs {tmp_path} --name run") as process:
        wait_for_an_epoch(tmp_path / "run", process)
        process.stderr.close()
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 130
    assert "stopped at step" in (tmp_path / "run/log.txt").read_text().splitlines()[-1]
    assert Run(tmp_path / "run").load("last")["step"] > 6


def test_hangups_that_are_ignored_stay_so(trainer_under_nohup):
    assert trainer_under_nohup is signal.SIG_IGN


@pytest.fixture
def trainer_under_nohup():
    from layerwise.trainer.stop import Stop

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop(print).on_signals():
            yield signal.getsignal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_pipe_whose_reader_has_ended(tmp_path):
    """`layerwise train ... 2>&1 | head -1`."""
    with started(f"{LONG} --runs {tmp_path} --name run") as process:
        assert process.stderr.readline()
        process.stderr.close()
        assert process.wait(120) == 130
    state = Run(tmp_path / "run").load("last")
    assert state is not None
    log = (tmp_path / "run/log.txt").read_text().splitlines()
    assert log[-1].endswith(
        f"stopped at step {state['step']}; continue: layerwise train --resume {tmp_path / 'run'}"
    )


@pytest.mark.parametrize(
    ("line", "closed", "code"), [("list rule", "stdout", 0), ("nosuch", "stderr", 2)]
)
def test_other_commands_on_a_closed_pipe(line, closed, code, tmp_path):
    with started(line, cwd=tmp_path) as process:
        getattr(process, closed).close()
        text = (process.stderr if closed == "stdout" else process.stdout).read()
        assert process.wait(120) == code
    assert text == b""


IMPORTING = """
import os, signal, sys, time
from layerwise.cli import main
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
            except KeyboardInterrupt as error:
                raise SystemError("a traceback, as libraries make") from error
sys.meta_path.insert(0, Slow())
sys.exit(main(["train"]))
"""


@pytest.mark.parametrize("library", ["torch", "lightning_fabric"])  # for the options; to train
def test_interrupted_while_libraries_are_imported(library):
    command = [sys.executable, "-c", IMPORTING, library]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted\n", "")


def test_the_command_line_starts_without_pytorch():
    """Its import takes seconds, in which an interrupt would give a traceback."""
    code = "import sys, layerwise.cli; print('torch' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False False\n"


@pytest.mark.slow
def test_interrupted_at_any_moment(tmp_path):
    """From the first tenth of a second on: one line, or that of a stop; never a traceback."""
    for k in range(12):
        with started(f"{LONG} --runs {tmp_path} --name run-{k}") as process:
            time.sleep(0.2 + 0.5 * k)
            process.send_signal(signal.SIGINT)
            err = process.communicate(timeout=60)[1].decode()
        assert process.returncode == 130, err
        assert "Traceback" not in err
        last = err.splitlines()[-1]
        assert last == "interrupted" or last.startswith("stopped at step"), err
