"""How a batch goes through a network that was cut: the network's own forward, paused where a block
ends."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from layerwise.blocks import intercept
from layerwise.blocks.unchanged import random_state, set_random_state
from layerwise.errors import InputError, reason
from layerwise.inputs import Inputs, call

if TYPE_CHECKING:
    from layerwise.blocks.stretches import Boundary, Stretches

autograd = torch._C._autograd
_count_modes = torch._C._len_torch_function_stack
_any_autocast = torch._C._is_any_autocast_enabled
_top_hooks = autograd._top_saved_tensors_default_hooks
Hooks = Any  # the functions of `torch.autograd.graph.saved_tensors_hooks`


class Pass:
    """One forward of the network, from the beginning of a block on, block after block.

    The forward runs on a stack of its own. Where a block ends it hands the block's output out and
    waits; it goes on with what it is handed back. Grad mode and autocast are those of whoever runs
    the next block, unless the forward has set its own. Tensors that are saved while it waits are
    not subject to the hooks of an activation checkpoint in the forward.

    A pass that begins with a later block calls the network on `inputs` and passes over the modules
    of earlier blocks: instead of running, each returns zeros of the shapes that it would return.

    Args:
        chain: the network.
        inputs: what the network is called with; of a pass that begins with the first block, `run`
            gets them.
        at: number of the first block to run.

    Attributes:
        next: number of the block that `run` runs.
        rows: how many rows the last block gave.
    """

    rows = 0
    _over = True

    def __init__(self, chain: Stretches, inputs: Inputs = None, at: int = 0):
        self.chain, self.inputs, self.next = chain, inputs, at
        self._at, self._over, self._entered = at, False, at == 0
        self._forward: intercept.Watched | None = None
        self._modules: tuple[nn.Module, ...] = ()
        self._counts: dict[nn.Module, int] = {}
        # What the forward has set for itself, and whether gradients were on when it last went on.
        self._own: dict[int, Any] = {}
        self._hooks: list[Hooks] = []
        self._modes: list[Any] = []  # `TorchFunctionMode`s
        self._gradients, self._checkpointed = True, False

    def run(self, h: Any) -> Tensor:
        """The next block's output, (B, ...); of the last block the network's class scores.

        Args:
            h: the block's input, (B, ...); for the first block the network's inputs.

        Raises:
            InputError: the forward does something else than when it was cut.
        """
        theirs, hooks, forward = _settings(), _top_hooks(False), self._forward
        modes, self._checkpointed = _count_modes(), False
        self._gradients = theirs[0]
        try:
            if self._own or self._hooks or self._modes:
                self._set_again()
            gather = getattr(self.chain.model, "unshard", None)
            if forward is not None and callable(gather):
                gather()  # FSDP's backward pass of a block frees what the whole network gathered
            out = self._begin(h) if forward is None else forward.go_on(h)
        except BaseException:
            self._finish()
            raise
        finally:
            if (
                torch.is_grad_enabled() is not theirs[0]
                or _any_autocast()
                or self._own
                or self._hooks
                or self._modes
                or _top_hooks(False) != hooks
                or _count_modes() != modes
            ):
                self._put_back(theirs, hooks, modes)
        if not self._forward.ended:  # type: ignore[union-attr]
            return out
        self._finish()
        if self.next != len(self.chain) - 1:
            self.chain.check_there()
            raise InputError(
                f"{type(self.chain.model).__name__}: the forward ended before block "
                f"{self.chain.names[self.next + 1]!r} began, as when layers are left out at random "
                "in train mode (layerdrop); turn that off, or cut elsewhere"
            )
        self.next += 1
        return self.chain.scores(out)

    def close(self) -> None:
        """Give up what is left of the forward: nothing of it runs any more."""
        if self._forward is not None and not self._over:
            theirs, hooks, modes = _settings(), _top_hooks(False), _count_modes()
            try:
                self._set_again()  # as the forward's own contexts expect it when they end
                self._forward.give_up()
            finally:
                self._put_back(theirs, hooks, modes)
        self._finish()

    def __del__(self) -> None:
        if not self._over and self._forward is not None:
            with contextlib.suppress(Exception):
                self.close()

    def _set_again(self) -> None:
        """What the forward had set for itself when it was paused."""
        for i, value in self._own.items():
            _SET[i](value)
        for hook in reversed(self._hooks):
            autograd._push_saved_tensors_default_hooks(*hook)
        for mode in reversed(self._modes):
            torch._C._push_on_torch_function_stack(mode)
        self._checkpointed, self._hooks, self._modes = bool(self._hooks), [], []
        self._gradients = torch.is_grad_enabled()

    def _put_back(self, theirs: tuple[Any, ...], hooks: Hooks, modes: int) -> None:
        """Keep what the forward has set, and set again what it was outside."""
        self._modes = []
        while _count_modes() > modes:
            self._modes.append(torch._C._pop_torch_function_stack())
        now = _settings()
        self._own = {}
        if now != theirs:
            self._own = {i: v for i, (v, w) in enumerate(zip(now, theirs, strict=True)) if v != w}
            for i in self._own:
                _SET[i](theirs[i])
        self._hooks = []
        while (top := _top_hooks(False)) not in (hooks, None):
            self._hooks.append(top)
            autograd._pop_saved_tensors_default_hooks()

    def _begin(self, h: Any) -> Any:
        inputs = h if self._at == 0 else self.inputs
        if self._at:
            self._given, self._structures = h, self.chain.structures(inputs)
            places = self.chain.moving.get(self._at, ())
            moving = [(m, key, m._buffers.get(key)) for m, key in places]
            self._buffers = [(m, key, b.clone()) for m, key, b in moving if b is not None]
            self._random = random_state(h)
        self._modules = self.chain.watched(self._at)
        intercept.install(self._modules)
        model = intercept.uncompiled(self.chain.model)  # compiled code cannot be paused
        self._forward = intercept.Watched.of(self._handle)
        return self._forward.begin(lambda: call(model, inputs))

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            intercept.remove(self._modules)

    def _handle(
        self, hook: intercept.Intercepted, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A module is called in the forward."""
        chain, module = self.chain, hook.module
        n = self._counts.get(module, 0)
        self._counts[module] = n + 1
        entry = chain.entries.get((module, n))
        if entry is not None:
            if entry.alone and self._entered and self.next + 1 == entry.number and len(args) == 1:
                args = (self._hand_out(args[0], entry),)
            else:
                args, kwargs = self._cross(entry, (args, kwargs))
        if not self._entered and module in chain.passed_over(self._at):
            result = self._placeholder(hook, n, args, kwargs)
        elif module in chain.around:  # compiled code cannot be paused
            result = hook.as_written(*args, **kwargs)
        else:
            result = (hook.compiled or module._call_impl)(*args, **kwargs)
        leaving = chain.exits.get((module, n))
        return result if leaving is None else self._cross(leaving, result)

    def _cross(self, boundary: Boundary, value: Any) -> Any:
        """A call's arguments, or what it returned, after the tensor that crosses has been handed
        out and another one back."""
        if self._entered and self.next >= boundary.number:
            raise InputError(
                f"{type(self.chain.model).__name__}: block {self.chain.names[boundary.number]!r} "
                "begins after a later one; the forward runs its layers in another order than when "
                "it was cut, and a block must be done once: keep the order, or cut elsewhere"
            )
        if not self._entered and boundary.number != self._at:
            return value
        h = boundary.find(value)
        if not isinstance(h, Tensor):
            raise InputError(
                f"{type(self.chain.model).__name__}: block {self.chain.names[boundary.number]!r} "
                f"was to begin with a tensor and got {type(h).__name__}; the forward does "
                "something else than when it was cut: cut elsewhere"
            )
        if not self._entered:
            self._enter()
            return boundary.replace(value, h, boundary.inwards(self._given))
        given = h
        if self.next + 1 < boundary.number:
            self.chain.check_there()
        # A block of which nothing ran gives what it was given: its layers were left out.
        while self.next < boundary.number:
            given = boundary.inwards(self._hand_out(boundary.outwards(given), boundary))
        return boundary.replace(value, h, given)

    def _enter(self) -> None:
        self._entered = True
        set_random_state(self._random)
        for module, key, value in self._buffers:
            module.get_buffer(key).copy_(value)

    def _hand_out(self, h: Tensor, boundary: Boundary) -> Tensor:
        assert self._forward is not None
        if self._gradients and not torch.is_grad_enabled():
            raise InputError(
                f"{type(self.chain.model).__name__}: block {self.chain.names[boundary.number]!r} "
                "begins where the forward computes without gradients, as an activation checkpoint "
                "does with use_reentrant=True; give it use_reentrant=False"
            )
        self.next += 1
        given = self._forward.pause(h)
        if self._checkpointed and given is not h and not boundary.closes:
            raise InputError(
                f"{type(self.chain.model).__name__}: block {self.chain.names[boundary.number]!r} "
                "begins within an activation checkpoint, which computes again with the tensor that "
                "it was called with; turn checkpointing on before cut, which then cuts elsewhere, "
                "or off"
            )
        return given

    def _placeholder(
        self, hook: intercept.Intercepted, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What a module of an earlier block would return, with zeros in its tensors."""
        hollow = self.chain.hollow.get(hook.module)
        if hollow is not None:
            return _by_shape(hollow, args, kwargs, self._given.device)
        structure = self._structures.get((hook.module, n))
        return hook.call(*args, **kwargs) if structure is None else structure.zeros()


@dataclass(frozen=True)
class _Shape:
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Structure:
    """What a module returned, but for the values of its tensors."""

    def __init__(self, value: Any):
        leaves, self._spec = pytree.tree_flatten(value)
        self._leaves = [
            _Shape(tuple(t.shape), t.dtype, t.device) if isinstance(t, Tensor) else t
            for t in leaves
        ]

    def zeros(self, rows: int | None = None, instead_of: int | None = None) -> Any:
        """The same, with zeros in its tensors; where their first axis is as long as `instead_of`,
        there are `rows`."""

        def made(leaf: Any) -> Any:
            if not isinstance(leaf, _Shape):
                return leaf
            shape = list(leaf.shape)
            if rows is not None and shape[:1] == [instead_of]:
                shape[0] = rows
            return torch.zeros(shape, dtype=leaf.dtype, device=leaf.device)

        return pytree.tree_unflatten([made(leaf) for leaf in self._leaves], self._spec)


def _by_shape(module: nn.Module, args: Any, kwargs: Any, device: torch.device) -> Any:
    """What a module whose weights are on the meta device returns, with zeros in its tensors.

    Raises:
        InputError: it asks for values.
    """
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    try:
        with torch.no_grad():
            result = module(*args, **kwargs)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__}: its weights are in another process, and what it returns "
            f"depends on more than shapes ({reason(error)}); train in one process"
        ) from error
    return pytree.tree_map_only(
        Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype, device=device), result
    )


_DEVICES = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))
_SET: list[Any] = [torch._C._set_grad_enabled, torch.set_autocast_cache_enabled]
for _device in _DEVICES:
    _SET.append(lambda value, device=_device: torch.set_autocast_enabled(device, value))
    _SET.append(lambda value, device=_device: torch.set_autocast_dtype(device, value))


def _settings(
    grad: Any = torch.is_grad_enabled,
    cache: Any = torch.is_autocast_cache_enabled,
    on: Any = torch.is_autocast_enabled,
    dtype: Any = torch.get_autocast_dtype,
) -> tuple[Any, ...]:
    """Grad mode and autocast, in the order of `_SET`."""
    found = (grad(), cache(), on("cpu"), dtype("cpu"))
    return found if len(_DEVICES) == 1 else (*found, on("cuda"), dtype("cuda"))
