"""Run a model for a measurement, and leave no trace of the run."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore on exit everything that running or tracing `model` may change.

    That is: its training flags, attributes, hooks and submodules; the contents of attributes that
    are dicts, lists, sets, tensors or generators; the values of its buffers (BatchNorm's running
    statistics); and the state of the random generators. Parameters are not copied, because nothing
    here steps them.
    """
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    # Restored by content, because an optimizer, a wrapper or a hook's handle may hold the table.
    # Copies have the plain type, because `copy.copy` of a subclass is ten times as slow.
    tables = [
        (value, plain(value))
        for module in modules
        for value in module.__dict__.values()
        for plain in (dict, list, set)
        if isinstance(value, plain)
    ]
    held = [v for module in modules for v in module.__dict__.values()]
    # An embedding with `max_norm` changes its weight, in eval mode as well.
    held += [m.weight for m in modules if getattr(m, "max_norm", None) is not None]
    values = [(v, v.detach().clone()) for v in held if isinstance(v, Tensor)]
    generators = [(v, v.get_state()) for v in held if isinstance(v, torch.Generator)]
    twins = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(sorted({d.index for d in devices if d.type == "cuda"})):
        try:
            # The model runs on copies of its buffers: a graph may still need their present values.
            for module in modules:
                for key, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[key] = twins[buffer]
            yield
        finally:
            for module in modules:  # FSDP keeps what a forward gathered for the backward pass
                if callable(reshard := getattr(module, "reshard", None)):
                    reshard()
            for module, before in zip(modules, attributes, strict=True):
                module.__dict__.clear()
                module.__dict__.update(before)
            for table, before in tables:
                table.clear()
                table.extend(before) if isinstance(table, list) else table.update(before)
            with torch.no_grad():
                for tensor, value in values:
                    if not torch.equal(tensor, value):
                        tensor.copy_(value)
            for generator, state in generators:
                generator.set_state(state)
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def trainable(model: nn.Module) -> Iterator[None]:
    """A context in which every parameter of `model` requires grad, frozen or not."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_()
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def seed(device: torch.device) -> None:
    """Seed with 0 every random generator that a model on `device` draws from.

    Use it within `unchanged`, which restores the generators.
    """
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)


def random_state(on: Tensor) -> tuple[Any, ...]:
    """The state of every random generator that a model on the device of `on` draws from."""
    return torch.get_rng_state(), get_device_states(on), random.getstate(), np.random.get_state()


def set_random_state(state: tuple[Any, ...]) -> None:
    """Set the generators to a state that `random_state` returned."""
    torch.set_rng_state(state[0])
    set_device_states(*state[1])
    random.setstate(state[2])
    np.random.set_state(state[3])


def buffer_versions(modules: Iterable[nn.Module]) -> dict[tuple[nn.Module, str], tuple[int, int]]:
    """For each buffer of the modules themselves: its identity, and its count of in-place changes.

    If the value under (module, name) differs later, the buffer has been changed or replaced.
    """
    return {
        (m, key): (id(buffer), buffer._version)
        for m in modules
        for key, buffer in m._buffers.items()
        if buffer is not None
    }
