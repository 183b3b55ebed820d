"""Runs a module several times in a step, as if it ran once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from layerwise.blocks.chain import Blocks
from layerwise.blocks.inplace import kept
from layerwise.blocks.stretch import Stretch
from layerwise.blocks.unchanged import random_state, set_random_state
from layerwise.inputs import leading

Buffers = list[tuple[nn.Module, str, Tensor]]


class Runs(Protocol):
    """An object that runs a batch's blocks: `Passes`, or a step's `Batch`."""

    def run(self, k: int, h: Any) -> Tensor: ...

    def again(self, k: int, h: Any) -> Tensor: ...


class Again:
    """The state in which a module's first run in a step begins, for its further runs.

    Further runs use the random numbers (dropout's masks) and buffers of the first run. Buffers
    (running statistics) are updated in the first run alone. Make this object before that run.

    Args:
        module: the module.
        x: its input. Random numbers are drawn on the input's device and on the CPU.
    """

    def __init__(self, module: nn.Module, x: Tensor):
        self.buffers = buffers_of(module)
        self.random = random_state(x)
        self.x = x.new_empty(())  # on its device

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """A context in which the module runs again. Afterwards random numbers continue as if it
        had not."""
        now = random_state(self.x)
        set_random_state(self.random)
        try:
            with buffers_as([(m, key, buffer.clone()) for m, key, buffer in self.buffers]):
                yield
        finally:
            set_random_state(now)


class Repeatable:
    """A block that can run again in a step, on another input, as the same function.

    Args:
        passes: runs the batch's blocks.
        blocks: the network.
        k: the number of the block.

    Attributes:
        block: the block.
    """

    def __init__(self, passes: Runs, blocks: Blocks, k: int):
        self.block, self._k, self._passes = blocks[k], k, passes
        self._again: Again | None = None

    def first(self, h: Any) -> Tensor:
        """The block's output in its first run, (B, ...), after the blocks before it.

        Args:
            h: its input, (B, ...); for the first block the network's inputs.
        """
        self._again = Again(self.block, leading(h))
        return self._passes.run(self._k, kept(self.block, h))

    def __call__(self, h: Any) -> Tensor:
        """The block's output in a further run, (B, ...), as the function of its first run.

        Args:
            h: its input, (B, ...); for the first block the network's inputs.
        """
        assert self._again is not None
        with self._again.run():
            return self._passes.again(self._k, kept(self.block, h))


def buffers_of(block: nn.Module) -> Buffers:
    """The module and the name of each buffer of a block, and a copy of the buffer."""
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
    """A context in which a block has other buffers; its present ones are not changed.

    Args:
        before: as `buffers_of` returned.
    """
    now = [(module, key, module.get_buffer(key)) for module, key, _ in before]
    for module, key, buffer in before:
        setattr(module, key, buffer)
    try:
        yield
    finally:
        for module, key, buffer in now:
            setattr(module, key, buffer)
