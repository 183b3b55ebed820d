"""Stopping at a step from which training can continue."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

HANGUP = getattr(signal, "SIGHUP", None)  # a POSIX system has it
SIGNALS = [n for n in (signal.SIGINT, signal.SIGTERM, HANGUP) if n is not None]


class Stop:
    """A request to stop training; `asked` says whether there is one.

    Args:
        say: tells the user that the request was received.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say, self.asked = say, False

    def ask(self) -> None:
        """Request a stop."""
        self.asked = True

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within, Ctrl-C, SIGTERM and the loss of the terminal (SIGHUP) request a stop; a second
        Ctrl-C or SIGTERM ends the program at once. Where SIGHUP is ignored, as under `nohup`, it
        stays so."""

        def ask(number: int, frame: object) -> None:
            if self.asked and number != HANGUP:  # a closed terminal may send several
                raise KeyboardInterrupt
            self.ask()
            self.say("stopping after this step ...")

        kept = {}
        with contextlib.suppress(ValueError):  # only the main thread may handle signals
            for number in SIGNALS:
                if number == HANGUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                kept[number] = signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
