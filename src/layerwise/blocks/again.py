"""Run a module again in a step as if it ran once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from layerwise.blocks.inplace import starts_in_place

Buffers = list[tuple[nn.Module, str, Tensor]]


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
        self.random = torch.get_rng_state()
        self.devices, self.states = get_device_states(x)
        self.x = x.new_empty(())  # on its device

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Within, the module runs again; random numbers go on after it as if it had not."""
        now = torch.get_rng_state(), get_device_states(self.x)
        torch.set_rng_state(self.random)
        set_device_states(self.devices, self.states)
        try:
            with buffers_as([(m, key, buffer.clone()) for m, key, buffer in self.buffers]):
                yield
        finally:
            torch.set_rng_state(now[0])
            set_device_states(*now[1])


class Repeatable:
    """A block that can run again, on what became of its input, as the function that it was.

    Args:
        block: one tensor to one tensor.

    Attributes:
        block: the block.
    """

    def __init__(self, block: nn.Module):
        self.block = block
        self._again: Again | None = None

    def first(self, h: Tensor) -> Tensor:
        """The block's output, (B, ...), as if it was called."""
        self._again = Again(self.block, h)
        return self._run(h)

    def __call__(self, h: Tensor) -> Tensor:
        """The block's output, (B, ...), as the function of its first run."""
        assert self._again is not None
        with self._again.run():
            return self._run(h)

    def _run(self, h: Tensor) -> Tensor:
        if starts_in_place(self.block):
            h = h.clone()
        elif h.requires_grad and h.is_leaf:  # hooks on what a module is given want no leaf
            h = h.view_as(h)
        return self.block(h)


def buffers_of(block: nn.Module) -> Buffers:
    """A copy of each buffer."""
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
