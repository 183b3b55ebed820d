"""Run a block a second time in a step as if it ran once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

Buffers = list[tuple[nn.Module, str, Tensor]]


class Again:
    """What a block's second run in a step begins with: made before the first.

    Random numbers (dropout's masks) and buffers are those of the first run, and buffers (running
    statistics) do not move a second time.

    Args:
        block: about to run for the first time.
        x: its input, whose device has the random numbers beside the CPU.
    """

    def __init__(self, block: nn.Module, x: Tensor):
        self.buffers = buffers_of(block)
        self.random = torch.get_rng_state()
        self.devices, self.states = get_device_states(x)

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Within, the block runs again; afterwards random numbers go on as after the first run."""
        torch.set_rng_state(self.random)
        set_device_states(self.devices, self.states)
        with buffers_as(self.buffers):
            yield


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
