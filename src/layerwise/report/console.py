"""The terminal: consoles for results, and for progress and errors."""

from __future__ import annotations

from rich.console import Console


class PlainConsole(Console):
    """A console that reports a closed pipe to its caller. Rich's own would end the program, with
    everything that is not saved."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


console = PlainConsole(stderr=True, highlight=False, emoji=False)  # progress and errors
output = PlainConsole(highlight=False, emoji=False)  # results
