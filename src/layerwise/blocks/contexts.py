"""The contexts that a forward has opened: set aside while it is paused, set again afterwards.

Grad mode, autocast, saved-tensor hooks (as activation checkpoints open them) and
`TorchFunctionMode`s belong to the thread. A paused forward must not leave its own to the rule that
runs meanwhile, and must find them again afterwards. Used by `passes.py` around every block.
"""

from __future__ import annotations

from typing import Any

import torch

autograd = torch._C._autograd
count_modes = torch._C._len_torch_function_stack
any_autocast = torch._C._is_any_autocast_enabled
top_hooks = autograd._top_saved_tensors_default_hooks
Hooks = Any  # the two functions of `torch.autograd.graph.saved_tensors_hooks`, None for no hooks

_DEVICES = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))
_SET: list[Any] = [torch._C._set_grad_enabled, torch.set_autocast_cache_enabled]
for _device in _DEVICES:
    _SET.append(lambda value, device=_device: torch.set_autocast_enabled(device, value))
    _SET.append(lambda value, device=_device: torch.set_autocast_dtype(device, value))


def settings(
    grad: Any = torch.is_grad_enabled,
    cache: Any = torch.is_autocast_cache_enabled,
    on: Any = torch.is_autocast_enabled,
    dtype: Any = torch.get_autocast_dtype,
) -> tuple[Any, ...]:
    """Grad mode and autocast of this thread, in the order of `_SET`; grad mode is the first."""
    found = (grad(), cache(), on("cpu"), dtype("cpu"))
    return found if len(_DEVICES) == 1 else (*found, on("cuda"), dtype("cuda"))


class Contexts:
    """The contexts of one paused forward.

    Attributes:
        any: whether the forward had a context open when it was last paused.
    """

    __slots__ = ("_hooks", "_modes", "_settings", "any")

    def __init__(self) -> None:
        self.any = False
        self._settings: dict[int, Any] = {}  # index in `_SET` -> the forward's own value
        self._hooks: list[Hooks] = []
        self._modes: list[Any] = []

    def enter(self) -> bool:
        """Set again what the forward had set; returns whether that includes saved-tensor hooks."""
        for i, value in self._settings.items():
            _SET[i](value)
        for hook in reversed(self._hooks):
            autograd._push_saved_tensors_default_hooks(*hook)
        for mode in reversed(self._modes):
            torch._C._push_on_torch_function_stack(mode)
        had_hooks, self._hooks, self._modes = bool(self._hooks), [], []
        return had_hooks

    def leave(self, outside: tuple[Any, ...], hooks: Hooks, modes: int) -> None:
        """Keep what the forward has set, and restore what was set outside of it.

        Args:
            outside: `settings()` outside.
            hooks: `top_hooks(False)` outside.
            modes: `count_modes()` outside.
        """
        self._modes = []
        while count_modes() > modes:
            self._modes.append(torch._C._pop_torch_function_stack())
        now = settings()
        self._settings = {}
        if now != outside:
            pairs = enumerate(zip(now, outside, strict=True))
            self._settings = {i: own for i, (own, other) in pairs if own != other}
            for i in self._settings:
                _SET[i](outside[i])
        self._hooks = []
        while (top := top_hooks(False)) not in (hooks, None):
            self._hooks.append(top)
            autograd._pop_saved_tensors_default_hooks()
        self.any = bool(self._settings or self._hooks or self._modes)
