"""The display that a training reports to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from layerwise.costs.blocks import Costs

P = TypeVar("P", bound="Progress")


class Progress:
    """Shows how far training is. This one shows nothing: a display overrides what it shows.

    It is a context manager that is entered in the process that trains, for as long as it trains;
    not in a process that only starts others.
    """

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def costs(self, costs: Costs) -> None:
        """Show what the network and its heads cost, before training begins."""

    def start(self, epoch: int, epochs: int, images: int, done: int) -> None:
        """Begin an epoch (from 1). Some of its images are done already if a run is resumed."""

    def update(self, done: int, loss: float | None, accuracy: float | None) -> None:
        """Show the images done in this epoch; loss and accuracy are those of the epoch so far."""

    def say(self, line: str) -> None:
        """Show a message of one line."""


class Watched(Progress):
    """A display that may be lost: a pipe whose reader has ended, or a terminal that is closed.

    Training must not end in the middle of a step because of that. The loss is reported once, and
    nothing more is shown.

    Args:
        display: shows what it is told.
        on_loss: called when the display is lost.
    """

    def __init__(self, display: Progress, on_loss: Callable[[], None]):
        self.display, self.on_loss, self.lost = display, on_loss, False

    def costs(self, costs: Costs) -> None:
        self._show(self.display.costs, costs)

    def start(self, epoch: int, epochs: int, images: int, done: int) -> None:
        self._show(self.display.start, epoch, epochs, images, done)

    def update(self, done: int, loss: float | None, accuracy: float | None) -> None:
        self._show(self.display.update, done, loss, accuracy)

    def say(self, line: str) -> None:
        self._show(self.display.say, line)

    def _show(self, show: Callable[..., None], *arguments: Any) -> None:
        if self.lost:
            return
        try:
            show(*arguments)
        except OSError:
            self.lost = True
            self.on_loss()
