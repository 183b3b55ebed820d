"""Intercepts calls of a network's modules, only while a forward runs in a `Coroutine`.

An intercepted call is everything that belongs to the module: its hooks and, if it is compiled, its
compiled code. Nothing is registered on the module. Instead, the attribute in which PyTorch looks
for a module's compiled call holds an `Intercepted`. Calls from anywhere else (another thread, an
activation checkpoint that computes again) go straight to the module.

`passes.py` installs and removes the interception around a forward; `cutting/recording.py`,
`placeholders.py` and `up_to.py` use it for their own runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from greenlet import getcurrent
from torch import nn

from layerwise.blocks.coroutine import Coroutine

_SLOT = "_compiled_call_impl"


class Intercepted:
    """Stands in for a module's call.

    Attributes:
        module: the module.
        compiled: the module's compiled call, None if it has none.
        users: how many forwards have asked for the interception and not yet removed it.
    """

    __slots__ = ("compiled", "module", "users")

    def __init__(self, module: nn.Module):
        self.module, self.users = module, 0
        self.compiled = module.__dict__.get(_SLOT)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        running = getcurrent()
        if type(running) is Coroutine:
            return running.handle(self, args, kwargs)
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own call."""
        return (self.compiled or self.module._call_impl)(*args, **kwargs)

    def as_written(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own call, without its compiled code."""
        return self.module._call_impl(*args, **kwargs)


def install(modules: Iterable[nn.Module]) -> None:
    """Intercept calls of these modules until as many calls of `remove` have followed."""
    for module in modules:
        found = module.__dict__.get(_SLOT)
        if type(found) is not Intercepted:
            found = Intercepted(module)
            module.__dict__[_SLOT] = found
        found.users += 1


def remove(modules: Iterable[nn.Module]) -> None:
    """Undo one `install` of these modules."""
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
    """Intercept calls of these modules within the context."""
    modules = list(modules)
    install(modules)
    try:
        yield
    finally:
        remove(modules)


def uncompiled(module: nn.Module) -> Callable[..., Any]:
    """The module's call without its compiled code."""
    return module._call_impl if is_compiled(module) else module


def is_compiled(module: nn.Module) -> bool:
    """Whether a call of this module runs compiled code."""
    found = module.__dict__.get(_SLOT)
    return found is not None and (type(found) is not Intercepted or found.compiled is not None)
