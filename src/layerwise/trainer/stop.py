"""Stopping at a step from which training can continue."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator


class Stop:
    """A request to stop training; `asked` says whether there is one.

    Args:
        say: tells the user that the request was received.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say, self.asked = say, False

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within, Ctrl-C and SIGTERM request a stop; a second one ends the program at once."""

        def ask(number: int, frame: object) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            self.say("stopping after this step ...")

        kept = {}
        with contextlib.suppress(ValueError):  # only the main thread may handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                kept[number] = signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
