"""The network up to a block, as a module of its own: for early exits, and to export them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from layerwise.blocks import intercept
from layerwise.blocks.passes import PausedForward
from layerwise.blocks.placeholders import (
    ModuleCall,
    Placeholder,
    record_placeholders,
    run_watched,
)
from layerwise.inputs import Inputs, leading

if TYPE_CHECKING:
    from layerwise.blocks.stretches import Stretches


class UpTo(nn.Module):
    """The network up to block k. It is called as the network is, and returns block k's output.

    If the call is traced for an export, the forward runs to its end and passes over the modules of
    later blocks, because an export cannot follow a forward that is given up. The operations that
    remain after the block lead nowhere, and the export drops them.
    """

    blocks: Stretches

    def __init__(self, blocks: Stretches, k: int):
        super().__init__()
        # The network is not registered: what is saved and exported are the blocks up to k.
        self.__dict__["blocks"], self.k = blocks, k
        own = blocks.stretches[: k + 1]
        self.parts = nn.ModuleList(top for block in own for top in block.tops)
        inside = set(self.parts.modules())
        for module, key in (place for block in own for place in block.places):
            name = blocks.name_of(module, key).replace(".", "/")
            if module in inside:
                continue
            if module._parameters.get(key) is not None:
                self.register_parameter(name, module._parameters[key])
            elif module._buffers.get(key) is not None:
                self.register_buffer(name, module._buffers[key])
        self.after = {} if k == len(blocks) - 1 else _of_later_blocks(blocks, k)

    def train(self, mode: bool = True) -> UpTo:
        """Set the mode of this module and of the network that it is a part of."""
        self.blocks.model.train(mode)
        return super().train(mode)

    @torch.compiler.disable  # compiled code cannot be paused
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        blocks, k = self.blocks, self.k
        if k == len(blocks) - 1:
            return blocks.scores(blocks.model(*args, **kwargs))
        inputs: Inputs = args[0] if len(args) == 1 else args
        if kwargs:
            inputs = inspect.signature(blocks.model.forward).bind(*args, **kwargs).arguments
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return _run_to_the_end(blocks, k, inputs, self.after)
        with contextlib.closing(PausedForward(blocks)) as forward:
            h: Any = inputs
            for _ in range(k + 1):
                h = forward.run(h)
            return h


def _of_later_blocks(blocks: Stretches, k: int) -> dict[ModuleCall, Placeholder]:
    """The outputs, for the example, of modules all of whose calls lie after block k."""
    begins = blocks.boundaries[k].first_event_after
    later: dict[nn.Module, bool] = {}
    for c in blocks.calls:
        later[c.module] = later.get(c.module, True) and c.begins >= begins and c.only_gradients
    modules = {module for module, yes in later.items() if yes}
    return record_placeholders(blocks.model, blocks.example_here(), modules)


def _run_to_the_end(
    blocks: Stretches, k: int, inputs: Inputs, after: Mapping[ModuleCall, Placeholder]
) -> Tensor:
    """Block k's output, (B, ...), in a forward in which later modules return zeros (`after`)."""
    boundary = blocks.boundaries[k]
    rows, recorded_rows = leading(inputs).shape[0], len(leading(blocks.example))
    found: list[Tensor] = []
    counts: dict[nn.Module, int] = {}

    def cross(value: Any) -> Any:
        found.append(boundary.to_batch_first(boundary.find(value)))
        return value

    def handle(hook: intercept.Intercepted, args: Any, kwargs: Any) -> Any:
        module = hook.module
        n = counts[module] = counts.get(module, -1) + 1
        here = module is boundary.module and n == boundary.n
        if here and boundary.entry:
            cross((args, kwargs))
        if found and (module, n) in after:
            return after[module, n].zeros(rows, recorded_rows)
        result = hook.call(*args, **kwargs)
        return cross(result) if here and not boundary.entry else result

    with intercept.intercepted({m for m, _ in after} | {boundary.module}):
        run_watched(blocks.model, inputs, handle)
    return found[0]
