"""Ctrl-C while libraries are imported."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts_end_at_once() -> Iterator[None]:
    """Within, Ctrl-C ends the program with one line. For the seconds in which libraries are
    imported: they would turn an exception into tracebacks of their own."""

    def leave(number: int, frame: object) -> None:
        if "RANK" not in os.environ:  # of several processes, the one that starts them says it
            os.write(2, b"interrupted\n")
        os._exit(130)

    try:
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, leave)
    except ValueError:  # only the main thread may handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
