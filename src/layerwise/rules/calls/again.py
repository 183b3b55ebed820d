"""Run a module again in a step as if it ran once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from layerwise.blocks.chain import Blocks
from layerwise.blocks.inplace import starts_in_place
from layerwise.blocks.stretch import Stretch
from layerwise.blocks.unchanged import random_state, set_random_state
from layerwise.inputs import leading

Buffers = list[tuple[nn.Module, str, Tensor]]


class Runs(Protocol):
    """A batch's way through blocks: `Passes`, or a step's batch."""

    def run(self, k: int, h: Any) -> Tensor: ...

    def again(self, k: int, h: Any) -> Tensor: ...


class Again:
    """What a module's further runs in a step begin with: made before the first.

    Random numbers (dropout's masks) and buffers are those of the first run, and buffers (running
    statistics) move in that alone.

    Args:
        module: about to run for the first time.
        x: its input, whose device has the random numbers beside the CPU.
    """

    def __init__(self, module: nn.Module, x: Tensor):
        self.buffers = buffers_of(module)
        self.random = random_state(x)
        self.x = x.new_empty(())  # on its device

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Within, the module runs again; random numbers go on after it as if it had not."""
        now = random_state(self.x)
        set_random_state(self.random)
        try:
            with buffers_as([(m, key, buffer.clone()) for m, key, buffer in self.buffers]):
                yield
        finally:
            set_random_state(now)


class Repeatable:
    """A block that can run again, on what became of its input, as the function that it was.

    Args:
        passes: the batch's way through the blocks.
        blocks: the network.
        k: number of the block.

    Attributes:
        block: the block.
    """

    def __init__(self, passes: Runs, blocks: Blocks, k: int):
        self.block, self._k, self._passes = blocks[k], k, passes
        self._again: Again | None = None

    def first(self, h: Any) -> Tensor:
        """The block's output, (B, ...), where it follows what has run."""
        self._again = Again(self.block, leading(h))
        return self._passes.run(self._k, self._own(h))

    def __call__(self, h: Any) -> Tensor:
        """The block's output, (B, ...), as the function of its first run."""
        assert self._again is not None
        with self._again.run():
            return self._passes.again(self._k, self._own(h))

    def _own(self, h: Any) -> Any:
        """The input, which the block may change in place, and which is no leaf."""
        if not isinstance(h, Tensor):
            return h
        if starts_in_place(self.block):
            return h.clone()
        # Hooks on what a module is given want no leaf.
        return h.view_as(h) if h.requires_grad and h.is_leaf else h


def buffers_of(block: nn.Module) -> Buffers:
    """A copy of each buffer."""
    if isinstance(block, Stretch):
        places = [(m, key, m._buffers.get(key)) for m, key in block.places]
        return [(m, key, b.clone()) for m, key, b in places if b is not None]
    return [
        (module, key, buffer.clone())
        for module in block.modules()
        for key, buffer in module.named_buffers(recurse=False)
    ]


@contextlib.contextmanager
def buffers_as(before: Buffers) -> Iterator[None]:
    """Let a block run again from the buffers it had, without moving those it has now."""
    now = [(module, key, module.get_buffer(key)) for module, key, _ in before]
    for module, key, buffer in before:
        setattr(module, key, buffer)
    try:
        yield
    finally:
        for module, key, buffer in now:
            setattr(module, key, buffer)
