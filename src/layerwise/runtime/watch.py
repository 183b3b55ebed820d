"""A watch over the processes of a training: whether each still answers, and whether one of them was
asked to stop."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

EVERY_S = 0.5
SAVING_S = 30.0  # at most, from the loss of the launcher to the end
LEFT = -(1 << 40)  # added to the count of a process that has left
LAUNCHER = "LAYERWISE_LAUNCHER"  # the environment variable with the number of the process


def launcher() -> int | None:
    """The number of the process that started this one with `launch`; None if none did."""
    text = os.environ.get(LAUNCHER, "")
    return int(text) if text.isdecimal() else None


class Watch:
    """The watch that one process keeps over the next rank and over the process that started it.

    A thread counts up in the store at MASTER_ADDR and MASTER_PORT, and reads the count of the next
    rank there, so the ranks watch each other in a ring. A stopped process counts no further. A
    second thread decides, because the first may wait for a store whose process is stopped. Both
    count their own rounds instead of seconds: if all processes are stopped and continued together,
    none of them is late.

    A lost rank ends this process with exit code 1, because its main thread may wait for the lost
    rank in a collective, which nothing can interrupt. If the launcher is lost, this process saves
    and ends as after a signal.

    Args:
        rank: the number of this process.
        count: the number of processes.
        start: how often the processes were started before.
        timeout_s: seconds without an answer before a process counts as lost.
        hosted: whether the launcher holds the store; otherwise rank 0 does.
    """

    def __init__(self, rank: int, count: int, start: int, timeout_s: float, hosted: bool):
        self.rank, self.next, self.start = rank, (rank + 1) % count, start
        self.leads = rank == count - 1
        self.timeout_s, self.hosted, self.launcher = timeout_s, hosted, launcher()
        self._asked: Callable[[], bool] = lambda: False
        self._ask: Callable[[], None] | None = None
        self._ended = threading.Event()
        self._rounds, self._beat, self._cut_off = 0, 0, False
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._talk, self._judge)
        ]
        for thread in self._threads:
            thread.start()

    def share(self, asked: Callable[[], bool], ask: Callable[[], None]) -> None:
        """From now on, a request to stop in one process is one in every process.

        Args:
            asked: whether this process was asked to stop.
            ask: asks it. Called in another thread.
        """
        self._asked, self._ask = asked, ask

    def close(self) -> None:
        """End the watch: this process is about to end, and no longer depends on others."""
        self._ended.set()
        for thread in self._threads:
            thread.join(2.0)  # a thread may wait for a store that is gone

    def _talk(self) -> None:
        """Exchange counts and requests to stop with the other processes."""
        try:
            store = watched_store(
                dist.TCPStore(
                    os.environ["MASTER_ADDR"],
                    int(os.environ["MASTER_PORT"]),
                    is_master=False,
                    wait_for_workers=False,
                    timeout=datetime.timedelta(seconds=max(self.timeout_s, 1.0)),
                ),
                self.start,
            )
            told = False
            while True:
                store.add(f"beat-{self.rank}", 1)
                self._beat = store.add(f"beat-{self.next}", 0)
                if not told and self._asked():
                    store.set("stop", "")
                    told = True
                elif not told and self._ask is not None and store.check(["stop"]):
                    self._ask()
                    told = True
                self._rounds += 1
                if self._ended.wait(EVERY_S):
                    break
            if not told and self._asked():
                store.set("stop", "")
            store.add(f"beat-{self.rank}", LEFT)
        except RuntimeError:  # every error of the store is one
            self._cut_off = True

    def _judge(self) -> None:
        """Count how long the store and the next rank have not answered."""
        rounds = beat = 0
        store_quiet_s = next_quiet_s = 0.0
        looked = time.monotonic()
        while not self._ended.wait(EVERY_S):
            now = time.monotonic()
            # A longer time passed while this process itself was stopped, and others with it.
            passed_s, looked = min(now - looked, 2 * EVERY_S), now
            if self.launcher is not None and os.getppid() != self.launcher:
                return self._lose_launcher("it has ended")
            if self._cut_off and not self.hosted:
                return None  # links and collectives learn that a process is gone
            answered, rounds = self._rounds != rounds, self._rounds
            # A store that rank 0 holds is waited for when the processes meet.
            waits = not answered and (self.hosted or rounds > 0)
            store_quiet_s = store_quiet_s + passed_s if waits else 0.0
            if answered:
                # A rank that has not begun is waited for when the processes meet.
                moved, beat = self._beat != beat, self._beat
                next_quiet_s = 0.0 if moved or beat <= 0 else next_quiet_s + passed_s
            if self._cut_off and store_quiet_s > 2 * EVERY_S:
                return self._lose_launcher("it closed the connection")
            if store_quiet_s > self.timeout_s and self.hosted:
                return self._lose_launcher(f"it has not answered for {self.timeout_s:g} s")
            if store_quiet_s > self.timeout_s:
                return self._lose_rank(0)
            if next_quiet_s > self.timeout_s:
                return self._lose_rank(self.next)
        return None

    def _lose_rank(self, rank: int) -> None:
        leave(f"rank {rank} is lost: it has not answered for {self.timeout_s:g} s")

    def _lose_launcher(self, why: str) -> None:
        """Save, and end. A launcher that is stopped is woken: it says what happened, and ends when
        its processes have ended."""
        speaks = self.launcher is not None and os.getppid() == self.launcher
        if speaks:
            with contextlib.suppress(OSError):
                os.kill(os.getppid(), signal.SIGCONT)
        elif self.leads:
            _write(f"the process that started the others is lost: {why}")
        if self._ask is None:
            leave(None)
        else:
            self._ask()
        if not self._ended.wait(SAVING_S):
            leave(None)


def watched_store(store: dist.Store, start: int) -> dist.Store:
    """The part of a store in which processes watch each other.

    Args:
        store: the store that all processes reach.
        start: how often the processes were started before.
    """
    return dist.PrefixStore(f"watch-{start}", store)


def leave(message: str | None) -> None:
    """End this process at once, with exit code 1 and a line on stderr."""
    if message is not None:
        let_launcher_speak()
        _write(message)
    os._exit(1)


def let_launcher_speak() -> None:
    """Before an error about another process is printed: wait a moment for the launcher, if there is
    one. It sees what happened to the lost process, says so, and ends this one."""
    if launcher() is not None and os.getppid() == launcher():
        time.sleep(1.0)


def _write(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody may read it any more
        os.write(2, f"layerwise train: {message}\n".encode())
