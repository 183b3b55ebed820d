"""Calls of a network's modules, intercepted while a forward runs under watch.

A call is intercepted around everything that belongs to the module: its hooks and, where it is
compiled, its compiled code. Nothing is registered on the module: while a forward is watched, the
attribute by which PyTorch finds a module's compiled call stands for the watcher. Calls from
anywhere else, such as from another thread or when an activation checkpoint computes again, go
through as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from greenlet import getcurrent, greenlet
from torch import nn

_SLOT = "_compiled_call_impl"


class Watched(greenlet):
    """A forward that runs on a stack of its own; `handle` gets its calls of intercepted modules."""

    handle: Callable[[Intercepted, tuple[Any, ...], dict[str, Any]], Any]


class Intercepted:
    """Stands in for a module's call.

    Attributes:
        module: the module.
        compiled: its compiled call, None where it has none.
    """

    __slots__ = ("compiled", "module", "users")

    def __init__(self, module: nn.Module):
        self.module, self.users = module, 0
        self.compiled = module.__dict__.get(_SLOT)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        running = getcurrent()
        if type(running) is Watched:
            return running.handle(self, args, kwargs)
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own call."""
        return (self.compiled or self.module._call_impl)(*args, **kwargs)

    def as_written(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own call, not compiled."""
        return self.module._call_impl(*args, **kwargs)


def install(modules: Iterable[nn.Module]) -> None:
    """Intercept calls of these modules, once more; `remove` takes it back."""
    for module in modules:
        found = module.__dict__.get(_SLOT)
        if type(found) is not Intercepted:
            found = Intercepted(module)
            module.__dict__[_SLOT] = found
        found.users += 1


def remove(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        found = module.__dict__.get(_SLOT)
        if type(found) is not Intercepted:
            continue
        found.users -= 1
        if found.users:
            continue
        if found.compiled is None:
            del module.__dict__[_SLOT]
        else:
            module.__dict__[_SLOT] = found.compiled


@contextlib.contextmanager
def intercepted(modules: Iterable[nn.Module]) -> Iterator[None]:
    modules = list(modules)
    install(modules)
    try:
        yield
    finally:
        remove(modules)


def uncompiled(module: nn.Module) -> Callable[..., Any]:
    """A module's call as it is written."""
    return module._call_impl if is_compiled(module) else module


def is_compiled(module: nn.Module) -> bool:
    """Whether a call of this module runs compiled code."""
    found = module.__dict__.get(_SLOT)
    return found is not None and (type(found) is not Intercepted or found.compiled is not None)
