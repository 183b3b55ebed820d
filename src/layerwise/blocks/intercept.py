"""Calls of a network's modules, intercepted while a forward runs under watch.

A call is intercepted around everything that belongs to the module: its hooks and, where it is
compiled, its compiled code. Nothing is registered on the module: while a forward is watched, the
attribute by which PyTorch finds a module's compiled call stands for the watcher. Calls from
anywhere else, such as from another thread or when an activation checkpoint computes again, go
through as they are.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn

_SLOT = "_compiled_call_impl"


Handle = Callable[["Intercepted", tuple[Any, ...], dict[str, Any]], Any]


class Watched(greenlet):
    """A stack of its own on which forwards run, one after the other: a new one costs as much as a
    small layer.

    Attributes:
        handle: gets the forward's calls of intercepted modules.
        ended: whether the forward is over.
        result, raised: what came of it.
    """

    handle: Handle
    _next: Callable[[], Any]
    ended = True
    result: Any = None
    raised: BaseException | None = None

    @classmethod
    def of(cls, handle: Handle) -> Watched:
        """One that runs no forward."""
        idle = _IDLE.__dict__.setdefault("stacks", [])
        found = idle.pop() if idle else cls()
        found.handle = handle
        return found

    def begin(self, forward: Callable[[], Any]) -> Any:
        """Run a forward until it pauses or ends; gives what it hands out, or what it returns."""
        self.ended, self._next = False, forward
        return self.go_on(None)

    def go_on(self, value: Any) -> Any:
        """Let the forward go on with what it is handed back, until it pauses again or ends."""
        here = getcurrent()
        if self.parent is not here:
            self.parent = here
        out = self.switch(value)
        if not self.ended:
            return out
        out, error = self.result, self.raised
        self.result = self.raised = None
        if error is not None:
            try:
                raise error
            finally:
                del error  # whose traceback holds this frame, and the forward's tensors
        return out

    def pause(self, value: Any) -> Any:
        """Called by the forward: hand a value out; gives what is handed back."""
        return self.parent.switch(value)  # type: ignore[union-attr]

    def give_up(self) -> None:
        """Unwind the forward where it is paused."""
        for _ in range(8):  # it may catch the first
            if not self.ended:
                self.throw(GreenletExit)

    def run(self, _: None) -> Any:  # type: ignore[override]
        _below(FLOOR, self._work)

    def _work(self) -> None:
        while True:
            try:
                self.result = contextvars.copy_context().run(self._next)
            except GreenletExit:
                pass
            except BaseException as error:
                self.raised = error
            self.ended = True
            del self._next, self.handle  # nothing is held while no forward runs
            _IDLE.stacks.append(self)
            self.parent.switch()  # type: ignore[union-attr]


_IDLE = threading.local()

# A C++ error of PyTorch writes down the 64 innermost C frames. Below the first frame of a stack of
# its own lies what another stack has left there, in which that search would crash; so the first
# frames are these, each of them several in C, and do nothing.
FLOOR = 16


def _below(levels: int, then: Callable[[], Any]) -> Any:
    return functools.partial(_below, levels - 1, then)() if levels else then()


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
