"""Run a model as often as it takes, and leave no trace of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back on exit what running or tracing `model` may change.

    That is its training flags, attributes and submodules, the values of its buffers (BatchNorm's
    running statistics) and the state of the random generators. Parameters are not copied: nothing
    here steps them.
    """
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    registered = [
        {key: dict(module.__dict__[key]) for key in ("_parameters", "_buffers", "_modules")}
        for module in modules
    ]
    values = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    with torch.random.fork_rng(sorted({d.index for d in devices if d.type == "cuda"})):
        try:
            yield
        finally:
            for module, before, tables in zip(modules, attributes, registered, strict=True):
                module.__dict__.clear()
                module.__dict__.update(before)
                for key, table in tables.items():
                    # In place: an optimizer or a wrapper may hold on to the dictionary itself.
                    module.__dict__[key].clear()
                    module.__dict__[key].update(table)
            with torch.no_grad():
                for buffer, value in values.items():
                    buffer.copy_(value)
