"""A forward that can be paused: it runs on a stack of its own (a greenlet).

`passes.py` starts a forward with `begin`, gets a block's output when the forward calls `pause`, and
lets it continue with `go_on`. `intercept.py` recognises by the running `Coroutine` that a module
is called in such a forward.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

Handle = Callable[..., Any]  # (Intercepted, args, kwargs) -> what the module's call returns


class Coroutine(greenlet):
    """A stack on which forwards run, one after another.

    It is kept for the next forward, because a new stack costs as much as a small layer.

    Attributes:
        handle: called instead of each intercepted module that the forward calls.
        ended: whether the forward is over.
        result: what the forward returned; None while it runs.
        raised: the exception that ended the forward; None otherwise.
    """

    handle: Handle
    _next: Callable[[], Any]
    ended = True
    result: Any = None
    raised: BaseException | None = None

    @classmethod
    def idle(cls, handle: Handle) -> Coroutine:
        """A stack on which no forward runs: an idle one of this thread, or a new one."""
        idle = _IDLE.__dict__.setdefault("stacks", [])
        found = idle.pop() if idle else cls()
        found.handle = handle
        return found

    def begin(self, forward: Callable[[], Any]) -> Any:
        """Run a forward until it pauses or ends.

        Returns:
            The value that the forward hands out, or returns (see `ended`).
        """
        self.ended, self._next = False, forward
        return self.go_on(None)

    def go_on(self, value: Any) -> Any:
        """Hand `value` back to the paused forward and let it run until it pauses or ends."""
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
                del error  # its traceback holds this frame, and so the forward's tensors
        return out

    def pause(self, value: Any) -> Any:
        """Called by the forward: hand `value` out and wait; returns what is handed back."""
        return self.parent.switch(value)  # type: ignore[union-attr]

    def give_up(self) -> None:
        """Unwind the forward from where it is paused."""
        for _ in range(8):  # the forward may catch the first exceptions
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
            del self._next, self.handle  # an idle stack holds nothing
            _IDLE.stacks.append(self)
            self.parent.switch()  # type: ignore[union-attr]


_IDLE = threading.local()

# A C++ error of PyTorch records the 64 innermost C frames. Below the first frame of a greenlet lies
# memory that another stack has left there, and the search for frames would crash in it. So the
# first frames are these: each is several frames in C, and they do nothing.
FLOOR = 16


def _below(levels: int, then: Callable[[], Any]) -> Any:
    return functools.partial(_below, levels - 1, then)() if levels else then()
