"""The command line, in a process of its own or in this one."""

from __future__ import annotations

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
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen(
            [sys.executable, *start, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        ends = time.monotonic() + LONGEST_S
        try:
            while process.poll() is None and time.monotonic() < ends:
                if interrupt_when is not None and interrupt_when():
                    process.send_signal(signal.SIGINT)
                    interrupt_when = None
                time.sleep(0.01)
        finally:
            stopped = process.poll() is None
            if stopped:
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        file.seek(0)
        text = file.read()
    return Ended(code, f"{text}\nstopped after {LONGEST_S:.0f} s" if stopped else text)


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
