"""One real run of a network, with every call of its modules noted.

Two clocks order a run. An *event* is the beginning or the end of a module's call; events are
numbered from 0. The *time* of a moment is the number that PyTorch gives to the next autograd node
(see `graph.py`).
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.blocks import intercept
from layerwise.blocks.coroutine import Coroutine
from layerwise.blocks.cutting.data_flow import InputDependence, Node
from layerwise.blocks.cutting.flops import FlopCounter
from layerwise.blocks.cutting.graph import Output
from layerwise.blocks.nested import Path, at_path, replaced, with_paths
from layerwise.blocks.unchanged import buffer_versions
from layerwise.inputs import Inputs, leaves, tensors

# Where a tensor can be intercepted: a module, which of its calls, whether at entry, and the
# tensor's path in the arguments or in what is returned.
Where = tuple[nn.Module, int, bool, Path]

time_now = torch._C._autograd._get_sequence_nr


def saving_hooks() -> Any:
    """The functions through which tensors are saved for the backward pass; None for no hooks."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        module: the module.
        n: which of the module's calls, from 0.
        begins, ends: the events.
        begin_time, end_time: the times.
        hooks: the saved-tensor hooks when the call begins.
        given: the tensor that the module was called with, if there was only one; None otherwise.
        gave: what the module returned, if it was a tensor; None otherwise.
        only_gradients: whether everything that it returned is a tensor with a gradient.
        made: the times of the nodes that gave the tensors that it returned.
    """

    module: nn.Module
    n: int
    begins: int
    begin_time: int
    hooks: Any
    given: Tensor | None
    ends: int = 0
    end_time: int = 0
    gave: Tensor | None = None
    only_gradients: bool = False
    made: tuple[int, ...] = ()


@dataclass(eq=False)
class Moment:
    """A tensor with a gradient that a module was called with, or returned.

    It is a candidate for a place where a block ends and the next one begins.

    Attributes:
        call: the module's call.
        entry: True if the module was called with the tensor, False if it returned the tensor.
        path: where the tensor was: in (args, kwargs) or in what was returned.
        event: the event, the beginning or end of the call.
        time: the time.
        output: the tensor, as the output of an autograd node.
        shape: the tensor's shape.
        version: how often the tensor had been changed in place by then.
        tensor: the tensor.
        excluded: whether no block may begin here, because the moment lies within a call that must
            stay whole: of a module that says so (`indivisible`) or whose weights are sharded, or
            within an activation checkpoint, which runs again as a whole.
        ends_checkpoint: whether the module is all that an activation checkpoint consists of, and
            the moment lies at the checkpoint's end.
        may_run_again: whether the moment is an entry that an activation checkpoint may enclose: the
            module, or one around it, that was called with the tensor has its own `__call__`, which
            may make a checkpoint.
        flops: floating-point operations of the run so far.
        changed_in_training: whether the tensor is changed in place in train mode after it has
            crossed; found by the trial.
    """

    call: Call
    entry: bool
    path: Path
    event: int
    time: int
    output: Output
    shape: tuple[int, ...]
    version: int
    tensor: Tensor
    excluded: bool
    ends_checkpoint: bool
    may_run_again: bool
    flops: int
    changed_in_training: bool = False

    @property
    def module(self) -> nn.Module:
        return self.call.module

    @property
    def where(self) -> Where:
        return self.call.module, self.call.n, self.entry, self.path

    @property
    def place(self) -> float:
        """A number between the events around the moment: just before an entry or after an exit."""
        return self.event - 0.5 if self.entry else self.event + 0.5

    @property
    def changed_in_place(self) -> bool:
        """Whether the tensor is changed in place after it has crossed."""
        return self.changed_in_training or self.tensor._version != self.version


@dataclass(eq=False)
class Crossing:
    """A place where a run was cut.

    Attributes:
        event: the event.
        time: the time.
        came: the tensor that came.
        leaf: that tensor without its graph.
        went_on: the tensor with which the run continued: the leaf, or a copy of it.
        reading: the meter's reading.
        buffers: for the modules whose calls enclose the place, the version of each buffer.
    """

    event: int
    time: int
    came: Tensor
    leaf: Tensor
    went_on: Tensor
    reading: int
    buffers: dict[tuple[nn.Module, str], tuple[int, int]]


@dataclass(eq=False)
class Recording:
    """One run of a network, with gradients.

    Attributes:
        moments: in the order of their events.
        calls: of all modules, in the order in which they begin.
        crossings: the places where the run was cut.
        result: what the network returned.
        flops: floating-point operations of the whole run; 0 if the run was cut.
        data_nodes: autograd nodes whose value depends on the network's inputs.
    """

    moments: list[Moment] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    crossings: dict[Where, Crossing] = field(default_factory=dict)
    result: Any = None
    flops: int = 0
    data_nodes: set[Node] = field(default_factory=set)


def record(
    model: nn.Module,
    run: Callable[[], Any],
    inputs: Inputs,
    cuts: Collection[Where] | None = None,
    read: Callable[[], int] = int,
    copied: Container[Where] = (),
) -> Recording:
    """Run a network and note every call of its modules.

    Args:
        model: the network, whose parameters require grad.
        run: calls it on `inputs`.
        cuts: where the tensor continues without its graph. None counts FLOPs instead.
        read: a meter, read at each cut.
        copied: the cuts after which the tensor is changed in place; there a copy continues.
    """
    recorder = _Recorder(model, inputs, cuts or (), read, copied)
    counting = recorder.flops if cuts is None else contextlib.nullcontext()
    with (
        intercept.intercepted(model.modules()),
        torch.enable_grad(),
        recorder.dependence,
        counting,
    ):
        result = Coroutine.idle(recorder.handle).begin(run)
    return recorder.finished(result)


class _Recorder:
    """Handles the calls of a network's modules while the network runs."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        cuts: Collection[Where],
        read: Callable[[], int],
        copied: Container[Where],
    ):
        self.model, self.read, self.copied = model, read, copied
        self.recording = Recording()
        self.dependence = InputDependence(inputs)
        self.flops = FlopCounter()
        self.cuts: dict[nn.Module, list[Where]] = defaultdict(list)
        for where in cuts:
            self.cuts[where[0]].append(where)
        self.counts: dict[nn.Module, int] = defaultdict(int)
        self.stack: list[Call] = []  # the calls under way
        self.hooks_outside = saving_hooks()
        # Tensors given to the calls under way of modules that may run their inside again.
        self.given_to_repeaters: list[list[Tensor]] = []
        self.events: list[tuple[int, Any]] = []  # the time and the saved-tensor hooks at each event

    def handle(self, hook: intercept.Intercepted, args: Any, kwargs: Any) -> Any:
        """Called instead of every module."""
        module = hook.module
        if module is self.model:
            return hook.as_written(*args, **kwargs)
        n, begins = self.counts[module], self._event()
        self.counts[module] += 1
        args, kwargs = self._cross(module, n, True, begins, (args, kwargs))
        given = tensors((args, kwargs))
        call = Call(
            module, n, begins, time_now(), saving_hooks(), given[0] if len(given) == 1 else None
        )
        self.recording.calls.append(call)
        self.stack.append(call)
        repeats = type(module).__call__ is not nn.Module.__call__
        if repeats:
            self.given_to_repeaters.append(given)
        self._note(call, (args, kwargs), True)
        result = hook.as_written(*args, **kwargs)
        if repeats:
            self.given_to_repeaters.pop()
        self.stack.pop()
        call.ends, call.end_time = self._event(), time_now()
        gave = tensors(result)
        call.gave = gave[0] if isinstance(result, Tensor) else None
        call.only_gradients = bool(gave) and all(
            leaf.requires_grad if isinstance(leaf, Tensor) else leaf is None
            for leaf in leaves(result)
        )
        call.made = tuple(t.grad_fn._sequence_nr() for t in gave if t.grad_fn is not None)
        self._note(call, result, False)
        return self._cross(module, n, False, call.ends, result)

    def finished(self, result: Any) -> Recording:
        """The recording, once the run is over."""
        found = self.recording
        found.result = result
        found.moments.sort(key=lambda moment: moment.event)
        for moment in found.moments:
            following = moment.event + 1
            time, hooks = self.events[moment.event]
            at_end = following == len(self.events)
            next_time, next_hooks = (0, self.hooks_outside) if at_end else self.events[following]
            if hooks != self.hooks_outside and (next_hooks == hooks or next_time != time):
                moment.excluded = True  # the activation checkpoint continues
        found.flops, found.data_nodes = self.flops.total, self.dependence.nodes
        return found

    def _event(self) -> int:
        """Count an event; returns its number."""
        self.events.append((time_now(), saving_hooks()))
        return len(self.events) - 1

    def _note(self, call: Call, value: Any, entry: bool) -> None:
        """Add a moment for each tensor with a gradient in (args, kwargs) or in what is returned."""
        with torch._C.DisableTorchFunction():  # nothing that is read here is the network's
            hooks, seen = saving_hooks(), set[int]()
            ends_checkpoint = not entry and (
                call.hooks != (self.stack[-1].hooks if self.stack else self.hooks_outside)
                or type(call.module).__call__ is not nn.Module.__call__
            )
            excluded = (hooks != self.hooks_outside and not ends_checkpoint) or any(
                _indivisible(c.module) for c in self.stack if c is not call
            )
            for path, tensor in with_paths(value):
                if not isinstance(tensor, Tensor) or tensor.grad_fn is None or id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                moment = Moment(
                    call=call,
                    entry=entry,
                    path=path,
                    event=call.begins if entry else call.ends,
                    time=call.begin_time if entry else call.end_time,
                    output=(tensor.grad_fn, tensor.output_nr),
                    shape=tuple(tensor.shape),
                    version=tensor._version,
                    tensor=tensor,
                    excluded=excluded,
                    ends_checkpoint=ends_checkpoint,
                    may_run_again=entry
                    and any(t is tensor for given in self.given_to_repeaters for t in given),
                    flops=self.flops.total,
                )
                self.recording.moments.append(moment)

    def _cross(self, module: nn.Module, n: int, entry: bool, event: int, value: Any) -> Any:
        """`value` with a tensor without its graph wherever the run is cut here."""
        for where in self.cuts.get(module, ()):
            if where[1:3] != (n, entry):
                continue
            tensor = at_path(value, where[3])
            if not isinstance(tensor, Tensor):
                continue
            time, leaf = time_now(), tensor.detach().requires_grad_()
            self.dependence.mark(leaf)
            went_on = leaf.clone() if where in self.copied else leaf  # a leaf must not be changed
            buffers = buffer_versions([self.model, *(c.module for c in self.stack)])
            self.recording.crossings[where] = Crossing(
                event, time, tensor, leaf, went_on, self.read(), buffers
            )
            value = replaced(value, tensor, went_on)
        return value


def _indivisible(module: nn.Module) -> bool:
    """Whether a module says so, or its weights are sharded and gathered for its whole call."""
    sharded = hasattr(module, "set_reshard_after_backward")
    return sharded or bool(getattr(module, "indivisible", False))
