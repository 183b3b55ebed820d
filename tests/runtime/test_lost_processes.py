"""Processes of a training that are killed, stopped or asked to stop, the one that started the
others included: the lost one is named, all end, and the run continues to the same bits."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from started import (
    LONG,
    end_of,
    ended,
    layerwise,
    same,
    stages_of,
    until,
    until_saved,
)

from layerwise.cli import main

pytestmark = [
    pytest.mark.gloo,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc"),
]
LONGER = LONG.replace("--epochs 12", "--epochs 60")
KILL_OR_STOP = (signal.SIGKILL, signal.SIGSTOP)
STARTER = "starter"  # the process that starts the others
LOADED_S = 60.0  # a machine with much else to do


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def _all_of(process: subprocess.Popen[str], count: int) -> list[int]:
    """The ranks, once all have been started."""
    until(lambda: len(list(stages_of(process))) == count)
    return list(stages_of(process))


@pytest.mark.slow
def test_stopped_and_killed_processes() -> None:
    """The last rank, which only takes, is stopped; then the process that started both is killed."""
    process = layerwise(f"train {LONG} --name lost --stages 2 --timeout 2")
    until_saved("lost")
    ranks = _all_of(process, 2)
    os.kill(ranks[1], signal.SIGSTOP)
    code, said = ended(process)
    end_of(ranks)
    assert code == 1, said
    assert "rank 1 is lost: it has been stopped for 2 s; continue: layerwise train" in said
    assert "Traceback" not in said

    process = layerwise("train --resume experiments/lost --stages 2")
    ranks = _all_of(process, 2)
    process.kill()
    assert main(f"train {LONG} --name whole".split()) == 0  # while the ranks start and end
    code, said = ended(process)
    end_of(ranks)
    assert code == -signal.SIGKILL
    assert "the process that started the others is lost: it has ended" in said
    assert main(["train", "--resume", "experiments/lost", "--runtime", "serial"]) == 0
    assert same("lost", "whole")


@pytest.mark.slow
def test_any_process_is_asked_to_stop() -> None:
    """What one is asked, all do; what was done is saved once. Ctrl-C at the process that starts the
    others is below."""
    path = Path("experiments/asked")
    for who, number in (
        (0, signal.SIGINT),
        (1, signal.SIGHUP),
        (2, signal.SIGTERM),
        (STARTER, signal.SIGTERM),
        (STARTER, signal.SIGHUP),
    ):
        begin = f"--resume {path}" if path.exists() else f"{LONGER} --name asked"
        before = _saved_at(path)
        process = layerwise(f"train {begin} --stages 3")
        ranks = _all_of(process, 3)
        until(lambda before=before: _saved_at(path) != before)
        os.kill(process.pid if who == STARTER else ranks[who], number)
        code, said = ended(process)
        end_of(ranks)
        assert code == 130, (who, said)
        assert said.count("stopped at step") == 1
        assert said.count("stopping after this step") <= 1  # the others may stop before it hears
    assert main(["train", "--resume", str(path), "--runtime", "serial"]) == 0
    assert main(f"train {LONGER} --name whole".split()) == 0
    assert same("asked", "whole")


@pytest.mark.slow
def test_all_are_stopped_and_continued() -> None:
    """As by Ctrl-Z and `fg` at a terminal: nobody is late, and Ctrl-C says what it always does."""
    process = layerwise(f"train {LONGER} --name paused --stages 2 --timeout 3")
    until_saved("paused")
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(10)
    before = _saved_at(Path("experiments/paused"))
    os.killpg(process.pid, signal.SIGCONT)
    time.sleep(4)
    until(lambda: _saved_at(Path("experiments/paused")) != before)
    os.killpg(process.pid, signal.SIGINT)
    code, said = ended(process)
    assert code == 130, said
    assert "all processes have stopped; continue: layerwise train --resume" in said
    assert "this process was stopped" not in said
    assert main(["train", "--resume", "experiments/paused", "--runtime", "serial"]) == 0
    assert main(f"train {LONGER} --name whole".split()) == 0
    assert same("paused", "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "count", "stopped"),
    [("--stages 2 --replicas 2", 4, 0), ("--stages 3", 3, 1), ("--replicas 2", 2, 0)],
)
def test_any_process_at_any_moment(layout: str, count: int, stopped: int) -> None:
    """Kills and stops of any process, while they start and while they train."""
    chance, path = random.Random(count), Path("experiments/lost")
    options = f"{LONGER} --timeout 4"
    rounds = [(who, number) for who in (STARTER, "rank") for number in KILL_OR_STOP]
    rounds = [("rank", signal.SIGKILL), *chance.sample(rounds, len(rounds))]
    for k, (who, number) in enumerate(rounds):
        if who != STARTER:
            who = stopped if number == signal.SIGSTOP else chance.randrange(count)
        before = _saved_at(path)
        begin = f"--resume {path} {layout}" if path.exists() else f"{options} {layout} --name lost"
        process = layerwise(f"train {begin}")
        ranks = _all_of(process, count)
        if k == 0 or chance.random() < 0.7:
            until(lambda before=before: _saved_at(path) != before)
            time.sleep(chance.uniform(0, 0.3))
        else:
            time.sleep(chance.uniform(0, 5))
        since = time.monotonic()
        os.kill(process.pid if who == STARTER else ranks[who], number)
        code, said = ended(process)
        end_of(ranks)
        what = (k, who, number, code, said)
        # Ranks that are starting notice the loss when everything is imported.
        assert time.monotonic() - since < 4 + LOADED_S, what
        assert "Traceback" not in said, what
        if who != STARTER:
            assert code == 1, what
            how = "ended by SIGKILL" if number == signal.SIGKILL else "stopped for 4 s"
            assert re.search(f"rank {who} is lost: it (was|has been) {how}", said), what
        elif number == signal.SIGKILL:
            assert "the process that started the others is lost: it has ended" in said, what
        else:
            assert code == 130, what
            assert "this process was stopped for 4 s, and the others have ended" in said, what
    for begin in (f"--resume {path}", f"{options} --name whole"):
        if "replicas" in layout:  # one process gives other bits than replicas
            code, said = ended(layerwise(f"train {begin} {layout}"), 600)
            assert code == 0, said
        else:
            assert main(f"train {begin} --runtime serial".split()) == 0
    assert same("lost", "whole")


def _saved_at(path: Path) -> float:
    kept = path / "checkpoints" / "last.safetensors"
    return kept.stat().st_mtime if kept.exists() else 0.0
