"""The command line, in a process of its own or in this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

# Deterministic algorithms have no environment variable.
DETERMINISTIC = (
    "import sys, torch; torch.use_deterministic_algorithms(True); "
    "from layerwise.cli import main; sys.exit(main())"
)
LONGEST_S = 90.0


class Ended(NamedTuple):
    code: int
    text: str

    @property
    def said(self) -> str:
        """The exit code and the last line."""
        lines = self.text.strip().splitlines() or [""]
        return f"exit code {self.code}: {lines[-1][:200]}"


def run(
    command: Sequence[str], limit_s: float, interrupt_when: Callable[[], bool] | None = None
) -> Ended:
    """Run a command, and end it and all its processes after `limit_s` seconds.

    Args:
        command: the program and its arguments.
        limit_s: seconds after which it is stopped.
        interrupt_when: send SIGINT as soon as this is true.
    """
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        ends = time.monotonic() + limit_s
        try:
            while process.poll() is None and time.monotonic() < ends:
                if interrupt_when is not None and interrupt_when():
                    process.send_signal(signal.SIGINT)
                    interrupt_when = None
                time.sleep(0.01)
        finally:
            stopped = process.poll() is None
            if stopped:
                _end(process)
            code = process.wait()
        file.seek(0)
        text = file.read()
    return Ended(code, f"{text}\nstopped after {limit_s:.0f} s" if stopped else text)


def _end(process: subprocess.Popen) -> None:
    """End a process and those that it started; some are in sessions of their own."""
    children = _children()
    found, waiting = [process.pid], [process.pid]
    while waiting:
        new = children.get(waiting.pop(), [])
        found += new
        waiting += new
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children() -> dict[int, list[int]]:
    """The processes that each process has started, as Linux lists them."""
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            found.setdefault(parent, []).append(int(path.parent.name))
    return found


def layerwise(
    arguments: Sequence[str],
    *,
    here: bool = False,
    interrupt_when: Callable[[], bool] | None = None,
    module: bool = False,
) -> Ended:
    """Run `layerwise ARGUMENTS`.

    Args:
        arguments: of the command line.
        here: in this process, which saves the seconds of a start.
        interrupt_when: send SIGINT as soon as this is true.
        module: as `python -m layerwise`, without deterministic algorithms.
    """
    if here:
        return _here(arguments, interrupt_when)
    start = ["-m", "layerwise"] if module else ["-c", DETERMINISTIC]
    return run([sys.executable, *start, *arguments], LONGEST_S, interrupt_when)


def _here(arguments: Sequence[str], interrupt_when: Callable[[], bool] | None) -> Ended:
    from layerwise.cli import main

    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            if interrupt_when is not None and interrupt_when():
                os.kill(os.getpid(), signal.SIGINT)
                return

    with tempfile.TemporaryFile("w+") as file:
        sys.stdout.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        watcher = threading.Thread(target=watch)
        if interrupt_when is not None:
            watcher.start()
        try:
            code = main(list(arguments))
        finally:
            over.set()
            sys.stdout.flush()
            for number, copy in enumerate(kept, 1):
                os.dup2(copy, number)
                os.close(copy)
        if watcher.is_alive():
            watcher.join()
        file.seek(0)
        return Ended(code, file.read())


def rows_of(run: Path) -> int:
    """The number of epochs in a run's metrics."""
    file = run / "metrics.csv"
    return max(0, len(file.read_text().splitlines()) - 1) if file.exists() else 0
