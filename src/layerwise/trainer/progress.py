"""The display that a training reports to."""

from __future__ import annotations

from typing import TypeVar

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
