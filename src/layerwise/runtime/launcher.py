"""Starting the processes of a training on this machine, and ending them.

PyTorch has a launcher, which `torchrun` is. It waits 30 s for a process that is stopped, does not
see that one is stopped, and leaves its processes behind if it is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

import torch.distributed as dist

from layerwise.errors import Interrupted, LostStage
from layerwise.runtime.watch import LAUNCHER, watched_store

LOOK_EVERY_S = 0.1
ENDING_S = 60.0  # from the end of the first process that was asked to stop to that of the last
INTERRUPTED = 130  # exit code
# Requests to stop; a POSIX system has SIGHUP.
SIGNALS = [
    n for n in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)) if n is not None
]
FINAL = {2}  # exit codes after which another start would fail in the same way


@contextlib.contextmanager
def handled(signals: Iterable[int], ask: Callable[[int, object], None]) -> Iterator[None]:
    """Within, `ask` handles these signals, if this is the main thread, which alone may do so."""
    kept = {}
    with contextlib.suppress(ValueError):
        for number in signals:
            kept[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class Rank:
    """One process of a training.

    Args:
        number: its rank.
        arguments: of its command line.
        environment: its environment variables.

    Attributes:
        code: its exit code, negative for the signal that ended it; None while it runs.
        stopped_s: seconds for which it has been stopped, as by SIGSTOP.
    """

    def __init__(self, number: int, arguments: Sequence[str], environment: dict[str, str]):
        self.number = number
        self.code: int | None = None
        self.stopped_s = 0.0
        self._stopped = False
        # In the group of this process: Ctrl-C and Ctrl-Z at a terminal reach all.
        self._process = subprocess.Popen([sys.executable, *arguments], env=environment)

    def look(self, passed_s: float) -> None:
        """Read its state.

        Args:
            passed_s: seconds since this was last called.
        """
        if self.code is not None:
            return
        if not hasattr(os, "WUNTRACED"):  # not a POSIX system: processes cannot be stopped
            self.code = self._process.poll()
            return
        found = 1
        while found and self.code is None:
            flags = os.WNOHANG | os.WUNTRACED | os.WCONTINUED
            found, status = os.waitpid(self._process.pid, flags)
            if not found:
                break
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                self._stopped = os.WIFSTOPPED(status)
            else:
                self.code = self._process.returncode = os.waitstatus_to_exitcode(status)
        self.stopped_s = self.stopped_s + passed_s if self._stopped else 0.0

    def end(self) -> None:
        """Kill it if it runs. Every file is written whole or not at all, so nothing is damaged."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self.code = self._process.wait()


class Requests:
    """The requests to stop that this process received. A second Ctrl-C or SIGTERM ends it."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within, signals are noted."""

        def ask(number: int, frame: object) -> None:
            if self.asked and number in (signal.SIGINT, signal.SIGTERM):
                raise KeyboardInterrupt
            self.asked = True

        # Ignored ones stay ignored, as SIGHUP under `nohup`.
        with handled([n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN], ask):
            yield


def launch(
    arguments: Sequence[str],
    processes: int,
    *,
    restarts: int,
    timeout_s: float,
    say: Callable[[str], None],
) -> int:
    """Run `python -m layerwise ARGUMENTS` in several processes on this machine.

    If one fails, all others are ended; while `restarts` are left, all are started again.

    Args:
        arguments: of the command line.
        processes: number of processes.
        restarts: how often all may be started again.
        timeout_s: seconds for which a process may be stopped, as by SIGSTOP, before it is lost.
        say: tells the user that all are started again.

    Returns:
        The exit code: 0, or that of the process that failed.

    Raises:
        LostStage: a process was killed, or stopped for too long.
        Interrupted: this process or one of the others was asked to stop, and all have ended.
    """
    host = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    requests = Requests()
    with requests.on_signals():
        for start in range(restarts + 1):
            store = watched_store(host, start)
            ranks: list[Rank] = []
            try:
                for number in range(processes):
                    environment = _environment(number, processes, start, host.port)
                    ranks.append(Rank(number, ["-m", "layerwise", *arguments], environment))
                code = _wait(ranks, store, requests, timeout_s)
            except LostStage as error:
                if start == restarts:
                    raise
                say(f"{error}; all start again")
                continue
            finally:
                for rank in ranks:
                    rank.end()
            if code == 0 or code in FINAL or start == restarts:
                return code
            say(f"a process ended with exit code {code}; all start again")
    raise AssertionError  # the last start returns or raises


def _environment(number: int, count: int, start: int, port: int) -> dict[str, str]:
    """The variables that `torchrun` sets, and the number of this process."""
    variables = {
        "RANK": number,
        "LOCAL_RANK": number,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
        "TORCHELASTIC_RESTART_COUNT": start,
        "TORCHELASTIC_RUN_ID": os.getpid(),
        "TORCHELASTIC_USE_AGENT_STORE": True,
        LAUNCHER: os.getpid(),
    }
    threads = {"OMP_NUM_THREADS": "1"}  # read when torch is imported
    return threads | dict(os.environ) | {name: str(value) for name, value in variables.items()}


def _wait(ranks: Sequence[Rank], store: dist.Store, requests: Requests, timeout_s: float) -> int:
    """Wait until all processes have ended, or one has failed; return its exit code, or 0.

    Raises:
        LostStage, Interrupted: as `launch`.
    """
    told, ending_s, looked = False, 0.0, time.monotonic()
    woken_s = ENDING_S  # for which this process has run since it was stopped for too long
    while True:
        now = time.monotonic()
        if now - looked > timeout_s:
            woken_s = 0.0
        # If this process was stopped, the others may have been stopped with it.
        passed_s, looked = min(now - looked, 1.0), now
        woken_s += passed_s
        # Then the others have counted it as lost, and end now; or they go on, and it is over.
        stopped = woken_s < ENDING_S and not requests.asked
        said = "all processes have stopped"
        if stopped:
            said = f"this process was stopped for {timeout_s:g} s, and the others have ended"
        for rank in ranks:
            rank.look(passed_s)
        if requests.asked and not told:
            store.set("stop", "")
            told = True
        for rank in ranks:
            if rank.code is not None and rank.code < 0:
                _lose(rank)
        for rank in ranks:
            if rank.stopped_s > timeout_s:
                raise LostStage(
                    f"rank {rank.number} is lost: it has been stopped for {timeout_s:g} s"
                )
        codes = [rank.code for rank in ranks]
        failed = [code for code in codes if code not in (None, 0, INTERRUPTED)]
        if failed and stopped:  # the others waited for this process
            raise Interrupted(said)
        if failed and INTERRUPTED not in codes:
            return failed[0]
        if INTERRUPTED in codes:
            # All stop together, and the last one to end may still draw curves; but a process that
            # was interrupted before it trained ends alone.
            ending_s += passed_s
            alone = not told and not store.check(["stop"])
            if None not in codes or alone or failed or ending_s > ENDING_S:
                raise Interrupted(said)
        elif None not in codes:
            return 0
        time.sleep(LOOK_EVERY_S)


def _lose(rank: Rank) -> NoReturn:
    """Raise what the end of a process by a signal means."""
    assert rank.code is not None
    try:
        name = signal.Signals(-rank.code).name
    except ValueError:  # a real-time signal
        name = f"signal {-rank.code}"
    if -rank.code in SIGNALS:  # before it trained; afterwards it saves first
        raise Interrupted(f"rank {rank.number} was ended by {name}")
    raise LostStage(f"rank {rank.number} is lost: it was ended by {name}")
