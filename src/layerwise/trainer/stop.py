"""Stopping at a step from which training can continue."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

from layerwise.runtime.launcher import SIGNALS, handled

HANGUP = getattr(signal, "SIGHUP", None)  # a POSIX system has it


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

    def announce(self) -> None:
        """Request a stop, and tell the user if none was requested before."""
        known, self.asked = self.asked, True
        if not known:
            self.say("stopping after this step ...")

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within, Ctrl-C, SIGTERM and the loss of the terminal (SIGHUP) request a stop; a second
        Ctrl-C or SIGTERM ends the program at once. Where SIGHUP is ignored, as under `nohup`, it
        stays so."""

        received: list[int] = []

        def ask(number: int, frame: object) -> None:
            # A closed terminal may send several SIGHUP. Other processes' requests are no signals.
            if received and number != HANGUP:
                raise KeyboardInterrupt
            received.append(number)
            self.announce()

        stays = {HANGUP} if HANGUP and signal.getsignal(HANGUP) == signal.SIG_IGN else set()
        with handled([n for n in SIGNALS if n not in stays], ask):
            yield
