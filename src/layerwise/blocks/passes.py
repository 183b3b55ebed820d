"""How a batch runs through a network that was cut: its forward, paused where a block ends.

A rule asks `ForwardPasses.run(k, h)` for block k's output. `PausedForward.run(h)` then lets the
network's forward continue with h until a module is called (or returns) at the next boundary:

    PausedForward.run        sets the forward's own contexts again (`contexts.py`) and continues it
    Coroutine.go_on          switches to the forward's stack (`coroutine.py`)
    Intercepted.__call__     a module at a boundary is called (`intercept.py`)
    PausedForward._handle    finds the boundary, calls the module
    PausedForward._hand_out  pauses the forward: `run` returns the block's output

All of this runs in every training step, so it is written for speed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from layerwise.blocks import intercept
from layerwise.blocks.boundary import Boundary
from layerwise.blocks.chain import Passes
from layerwise.blocks.contexts import Contexts, any_autocast, count_modes, settings, top_hooks
from layerwise.blocks.coroutine import Coroutine
from layerwise.blocks.placeholders import zeros_by_shape
from layerwise.blocks.unchanged import random_state, set_random_state
from layerwise.errors import InputError
from layerwise.inputs import Inputs, call

if TYPE_CHECKING:
    from layerwise.blocks.stretch import Stretch
    from layerwise.blocks.stretches import Stretches


class ForwardPasses(Passes):
    """The passes of a batch through a network that was cut.

    Each stream is one forward of the network, which lasts as long as its blocks are run in order.
    If they are not, the forward is given up and the block starts a new one (`alone.py`).

    The blocks of an `nn.Sequential`, also of nested ones, are modules called one after the other.
    As long as nothing about them has changed, these modules are called, and no forward is paused.
    """

    def __init__(self, blocks: Stretches, inputs: Inputs):
        super().__init__(blocks, inputs)
        self.network, self.stretches = blocks, blocks.stretches
        self._inputs: dict[int, Inputs] = {0: inputs}
        self._forwards: dict[int, PausedForward] = {}
        self._direct = blocks.is_sequential()

    def run(self, k: int, h: Any, stream: int = 0) -> Tensor:
        block = self.stretches[k]
        hooks = block._forward_pre_hooks or block._forward_hooks
        if self._direct and isinstance(h, Tensor):
            return _with_hooks(block, block.call_chain, h) if hooks else block.call_chain(h)
        forward = self._forwards.get(stream)
        # A forward that began with other rows (other views of the samples) would continue with
        # those in everything but h, so it cannot take this h.
        if forward is None or forward.next != k or k == 0 or h.shape[0] != forward.rows:
            if forward is not None:
                forward.close()
            forward = self._forwards[stream] = self._begin(k, h, stream)
        out = _with_hooks(block, forward.run, h) if hooks else forward.run(h)
        forward.rows = out.shape[0]
        return out

    def _begin(self, k: int, h: Any, stream: int) -> PausedForward:
        if k == 0:
            self._inputs[stream] = h
            return PausedForward(self.network)
        alone = self.network.alone
        alone.check(k)
        inputs = self._inputs.get(stream, self._inputs[0])
        return PausedForward(self.network, alone.inputs_for(k, h, inputs), k)

    def again(self, k: int, h: Any, stream: int = 0) -> Tensor:
        if self._direct and isinstance(h, Tensor):
            return self.stretches[k].call_chain(h)
        inputs = self._inputs.get(stream, self._inputs[0]) if k else None
        return self.network.alone.run(k, h, inputs)

    def close(self) -> None:
        for forward in self._forwards.values():
            forward.close()
        self._forwards.clear()


class PausedForward:
    """One forward of the network, from the beginning of a block on, run block by block.

    The forward runs on a stack of its own. Where a block ends it hands out the block's output and
    waits; it continues with the tensor that it is handed back. Grad mode and autocast are those of
    the caller of `run`, unless the forward has set its own. Tensors that are saved while the
    forward waits do not go through the hooks of an activation checkpoint that it has opened.

    A forward that begins with a later block calls the network on `inputs` and passes over the
    modules of earlier blocks: instead of running, each returns zeros in the shapes of its output.

    Args:
        network: the network.
        inputs: the network's inputs. They are not needed if the forward begins with the first
            block: then `run` gets them.
        at: the number of the first block to run.

    Attributes:
        next: the number of the block that the next `run` runs.
        rows: how many rows the last block's output had.
    """

    rows = 0
    _over = True

    def __init__(self, network: Stretches, inputs: Inputs = None, at: int = 0):
        self.network, self.inputs, self.next = network, inputs, at
        gather = getattr(network.model, "unshard", None)
        self._gather = gather if callable(gather) else None
        # Whether the forward has reached the boundary at which it begins.
        self._at, self._over, self._entered = at, False, at == 0
        self._coroutine: Coroutine | None = None
        self._modules: tuple[nn.Module, ...] = ()
        self._counts: dict[nn.Module, int] = {}  # calls of each intercepted module so far
        self._contexts = Contexts()
        # When the forward last continued: whether gradients were on, and whether it was within an
        # activation checkpoint.
        self._gradients, self._checkpointed = True, False
        # What is set while autocast is off, read once because that takes time.
        self._autocast_off = None if any_autocast() else settings()[1:]

    def run(self, h: Any) -> Tensor:
        """The next block's output, (B, ...); the last block's is the network's class scores.

        Args:
            h: the block's input, (B, ...); for the first block the network's inputs.

        Raises:
            InputError: the forward does something else than when it was cut.
        """
        coroutine, contexts, self._checkpointed = self._coroutine, self._contexts, False
        gradients = self._gradients = torch.is_grad_enabled()
        hooks, modes = top_hooks(False), count_modes()
        off = None if any_autocast() else self._autocast_off
        outside = settings() if off is None else (gradients, *off)
        try:
            if contexts.any:
                self._checkpointed = contexts.enter()
                self._gradients = torch.is_grad_enabled()
            if self._gather is not None and coroutine is not None:
                # FSDP's backward pass of a block frees what the whole network has gathered.
                self._gather()
            out = self._begin(h) if coroutine is None else coroutine.go_on(h)
        except BaseException:
            self._finish()
            raise
        finally:
            if (
                torch.is_grad_enabled() is not gradients
                or contexts.any
                or any_autocast()
                or top_hooks(False) != hooks
                or count_modes() != modes
            ):
                contexts.leave(outside, hooks, modes)
        if not self._coroutine.ended:  # type: ignore[union-attr]
            return out
        self._finish()
        if self.next != len(self.network) - 1:
            self.network.check_boundaries()
            raise InputError(
                f"{type(self.network.model).__name__}: the forward ended before block "
                f"{self.network.names[self.next + 1]!r} began, as when layers are left out at "
                "random in train mode (layerdrop); turn that off, or cut elsewhere"
            )
        self.next += 1
        return self.network.scores(out)

    def close(self) -> None:
        """Give up the rest of the forward: nothing of it runs any more."""
        if self._coroutine is not None and not self._over:
            outside, hooks, modes = settings(), top_hooks(False), count_modes()
            try:
                self._contexts.enter()  # the forward's contexts expect to find them when they end
                self._coroutine.give_up()
            finally:
                self._contexts.leave(outside, hooks, modes)
        self._finish()

    def __del__(self) -> None:
        if not self._over and self._coroutine is not None:
            with contextlib.suppress(Exception):
                self.close()

    def _begin(self, h: Any) -> Any:
        """Start the forward and run it until its first block ends."""
        inputs = h if self._at == 0 else self.inputs
        if self._at:
            alone = self.network.alone
            self._given, self._placeholders = h, alone.placeholders(inputs)
            self._passed_over = alone.passed_over(self._at)
            places = alone.moving_buffers.get(self._at, ())
            moving = [(m, key, m._buffers.get(key)) for m, key in places]
            self._buffers = [(m, key, b.clone()) for m, key, b in moving if b is not None]
            self._random = random_state(h)
        self._modules = self.network.modules_to_intercept(self._at)
        intercept.install(self._modules)
        model = intercept.uncompiled(self.network.model)  # compiled code cannot be paused
        self._coroutine = Coroutine.idle(self._handle)
        return self._coroutine.begin(lambda: call(model, inputs))

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            intercept.remove(self._modules)

    def _handle(
        self, hook: intercept.Intercepted, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Called on the forward's stack instead of an intercepted module."""
        network, module = self.network, hook.module
        n = self._counts.get(module, 0)
        self._counts[module] = n + 1
        call = module, n
        entry, leaving = network.entries.get(call), network.exits.get(call)
        if entry is not None:
            follows = self.next + 1 == entry.number and self._entered
            if follows and entry.is_first_argument and len(args) == 1:  # the shortcut
                args = (self._hand_out(args[0], entry),)
            else:
                args, kwargs = self._cross(entry, (args, kwargs))
        if not self._entered and module in self._passed_over:
            result = self._zeros(hook, n, args, kwargs)
        elif hook.compiled is None:
            result = module._call_impl(*args, **kwargs)
        elif module in network.enclosing:  # compiled code cannot be paused
            result = hook.as_written(*args, **kwargs)
        else:
            result = hook.compiled(*args, **kwargs)
        return result if leaving is None else self._cross(leaving, result)

    def _cross(self, boundary: Boundary, value: Any) -> Any:
        """Hand out the tensor that crosses at a boundary.

        Args:
            boundary: the boundary.
            value: (args, kwargs) of the call there, or what the call returned.

        Returns:
            `value` with the tensor that was handed back instead.
        """
        if self._entered and self.next >= boundary.number:
            raise InputError(
                f"{self._block(boundary)} begins after a later one; the forward runs its layers in "
                "another order than when it was cut, and a block must be done once: keep the "
                "order, or cut elsewhere"
            )
        if not self._entered and boundary.number != self._at:
            return value
        h = boundary.find(value)
        if not isinstance(h, Tensor):
            raise InputError(
                f"{self._block(boundary)} was to begin with a tensor and got {type(h).__name__}; "
                "the forward does something else than when it was cut: cut elsewhere"
            )
        if not self._entered:
            self._enter()
            return boundary.replace(value, h, boundary.from_batch_first(self._given))
        given = h
        if self.next + 1 < boundary.number:
            self.network.check_boundaries()
        # A block without a boundary in this forward was left out: its output is its input.
        while self.next < boundary.number:
            out = boundary.to_batch_first(given)
            given = boundary.from_batch_first(self._hand_out(out, boundary))
        return boundary.replace(value, h, given)

    def _enter(self) -> None:
        """The block at which the forward begins is reached: undo what ran before it."""
        self._entered = True
        set_random_state(self._random)
        for module, key, value in self._buffers:
            module.get_buffer(key).copy_(value)

    def _hand_out(self, h: Tensor, boundary: Boundary) -> Tensor:
        """Pause the forward with a block's output; returns the next block's input."""
        assert self._coroutine is not None
        if self._gradients and not torch.is_grad_enabled():
            raise InputError(
                f"{self._block(boundary)} begins where the forward computes without gradients, as "
                "an activation checkpoint does with use_reentrant=True; give it "
                "use_reentrant=False"
            )
        self.next += 1
        given = self._coroutine.pause(h)
        if self._checkpointed and given is not h and not boundary.ends_checkpoint:
            raise InputError(
                f"{self._block(boundary)} begins within an activation checkpoint, which computes "
                "again with the tensor that it was called with; turn checkpointing on before cut, "
                "which then cuts elsewhere, or off"
            )
        return given

    def _block(self, boundary: Boundary) -> str:
        """The network and the block that begins at a boundary, for errors."""
        name = self.network.names[boundary.number]
        return f"{type(self.network.model).__name__}: block {name!r}"

    def _zeros(
        self, hook: intercept.Intercepted, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Zeros in the shapes that a module of an earlier block would return."""
        on_meta = self.network.alone.on_meta.get(hook.module)
        if on_meta is not None:
            return zeros_by_shape(on_meta, args, kwargs, self._given.device)
        placeholder = self._placeholders.get((hook.module, n))
        return hook.call(*args, **kwargs) if placeholder is None else placeholder.zeros()


def _with_hooks(block: Stretch, run: Callable[[Any], Tensor], h: Any) -> Tensor:
    """A block's output with the hooks on the block itself, as if the block had been called."""
    for before in block._forward_pre_hooks.values():
        given = before(block, (h,))
        h = h if given is None else given[0] if isinstance(given, tuple) else given
    out = run(h)
    for after in block._forward_hooks.values():
        given = after(block, (h,), out)
        out = out if given is None else given
    return out
