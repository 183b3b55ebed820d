"""Where a block begins in the network's forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from layerwise.blocks.nested import Path, at_path, replaced


@dataclass(eq=False)
class Boundary:
    """A call of a module at whose entry, or exit, one block ends and the next one begins.

    Attributes:
        number: the number of the block that begins here, at least 1.
        module: the module that is called.
        n: which of the module's calls in one forward, from 0.
        entry: True if the tensor that crosses is an argument of the call, False if the call
            returns it.
        path: where the tensor is: in (args, kwargs) of the call, or in what the call returns.
        axis: the tensor's batch axis.
        event: the position among the beginnings and ends of all calls, in the run in which `cut`
            found the boundary.
        ends_checkpoint: whether an activation checkpoint may end here.
        is_first_argument: whether the tensor is the call's first argument and has the batch as its
            first axis. This is the common case, for which a pass takes a shortcut.
    """

    number: int
    module: nn.Module
    n: int
    entry: bool
    path: Path
    axis: int
    event: int
    ends_checkpoint: bool

    def __post_init__(self) -> None:
        self.is_first_argument = self.entry and self.path == (0, 0) and self.axis == 0

    @property
    def first_event_after(self) -> int:
        """The first event that belongs to the block that begins here."""
        return self.event if self.entry else self.event + 1

    def find(self, value: Any) -> Any:
        """The tensor that crosses, in a call's (args, kwargs) or in what the call returned."""
        return at_path(value, self.path)

    def replace(self, value: Any, h: Tensor, given: Tensor) -> Any:
        """`value` with `given` instead of the tensor `h`, everywhere."""
        return value if given is h else replaced(value, h, given)

    def to_batch_first(self, h: Tensor) -> Tensor:
        """h as it is in the forward -> (B, ...)."""
        return h.movedim(self.axis, 0) if self.axis else h

    def from_batch_first(self, h: Tensor) -> Tensor:
        """(B, ...) -> h as it is in the forward."""
        return h.movedim(0, self.axis) if self.axis else h
