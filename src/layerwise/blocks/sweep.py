"""Where a network can be cut, read off one real run of it.

The autograd nodes of a run are numbered in the order in which they were made. At a moment between
two nodes, a tensor is *alive* if it was made before and is used after. A moment at which one
tensor is alive is a cut point, if a module is called with that tensor, or returns it, just then: a
call is what can be intercepted. Tensors that have no gradient (masks, positions) and those that
depend on parameters alone (a table of relative positions) may cross as well.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from layerwise.blocks import intercept
from layerwise.inputs import Inputs, leaves, tensors

Node = Any  # torch.autograd.graph.Node
Output = tuple[Node, int]  # one of the tensors that a node gives
Path = tuple[Any, ...]  # where in a nested structure something is

now = torch._C._autograd._get_sequence_nr  # the number that the next node will get


def top_hooks() -> Any:
    """The functions by which tensors are saved for the backward pass; None for PyTorch's own."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        module: the module.
        n: which of its calls.
        depth: how many calls it lies in.
        begins, ends: places among all beginnings and ends of calls.
        starts, stops: numbers of the next autograd node, before and after.
        hooks: by which functions tensors are saved for the backward pass when it begins.
        given: the one tensor that it was called with, by identity; None where there were others.
        gave: the one tensor that it returned, likewise.
        sends: whether it returned nothing but tensors with a gradient.
        made: the numbers of the nodes that gave the tensors that it returned.
    """

    module: nn.Module
    n: int
    depth: int
    begins: int
    starts: int
    hooks: Any
    given: Tensor | None
    ends: int = 0
    stops: int = 0
    gave: Tensor | None = None
    sends: bool = False
    made: tuple[int, ...] = ()


@dataclass(eq=False)
class Moment:
    """A tensor with a gradient that a module was called with, or returned.

    Attributes:
        module: the module.
        n: which of the module's calls, from 0.
        entry: whether it was called with the tensor; else it returned it.
        path: where in the arguments, or in what was returned, the tensor was.
        order: the place among all beginnings and ends of calls.
        time: the number of the next autograd node.
        call: the call.
        output: the tensor, as the output of an autograd node.
        shape: of the tensor.
        version: how often the tensor had been changed in place.
        tensor: the tensor.
        inside: whether it lies in a call of a module that is not to be divided, or within an
            activation checkpoint, which runs again as a whole. What the module returns that such a
            checkpoint consists of lies at its end.
        closes: whether it is that.
        sheltered: whether it is an entry that such a checkpoint may enclose: the tensor comes from
            outside a module with a call of its own, which may make one.
        flops: floating-point operations so far.
        changes: whether the tensor is changed in place in train mode, after it has crossed.
    """

    module: nn.Module
    n: int
    entry: bool
    path: Path
    order: int
    time: int
    call: Call
    output: Output
    shape: tuple[int, ...]
    version: int
    tensor: Tensor
    inside: bool
    closes: bool
    sheltered: bool
    flops: int
    changes: bool = False


@dataclass(eq=False)
class Crossing:
    """Where a run was cut.

    Attributes:
        order: the place among all beginnings and ends of calls.
        time: the number of the next autograd node.
        gave: the tensor that came.
        leaf: the same without its graph.
        given: the tensor that went on: the leaf, or a copy of it.
        reading: what a meter showed.
        buffers: of the modules in whose calls it lies, which tensor each buffer is and how often it
            had been changed.
    """

    order: int
    time: int
    gave: Tensor
    leaf: Tensor
    given: Tensor
    reading: int
    buffers: dict[tuple[nn.Module, str], tuple[int, int]]


@dataclass(eq=False)
class Sweep:
    """One run of a network, with gradients.

    Attributes:
        moments: candidates for the end of a block, in order.
        calls: of all modules, in the order in which they begin.
        result: what the network returned.
        flops: floating-point operations of the whole run.
        tainted: nodes whose value depends on the network's inputs.
        crossings: where the run was cut, under the number of the cut.
        reentrant: whether an activation checkpoint runs again in a backward pass of its own, which
            gives parameters no gradient where its input wants none; found by `broken`.
    """

    reentrant: bool = False

    crossings: dict[int, Crossing] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    result: Any = None
    flops: int = 0
    tainted: set[Node] = field(default_factory=set)

    def broken(self, root: Tensor) -> set[int]:
        """The cuts around which another tensor reaches, as the graphs of the stretches between them
        tell; `root` is what the run gave."""
        reached = sorted(self.crossings.items(), key=lambda item: item[1].time)
        leaf_of = {id(c.leaf): i for i, c in reached}
        broken: set[int] = set()
        ends = [*(c.gave for _, c in reached), root]
        for j, end in enumerate(ends):
            graph = Graph(end, self.tainted)
            self.reentrant |= any(n.name().startswith("CheckpointFunction") for n in graph.order)
            earliest = min((graph.order[n] for n in graph.data), default=float("inf"))
            times = [earliest]
            for variable in graph.uses:
                if id(variable) in leaf_of:
                    times.append(self.crossings[leaf_of[id(variable)]].time)
            broken |= {i for i, c in reached[:j] if c.time > min(times)}
        return broken


Cut = tuple[nn.Module, int, bool, Path]


def sweep(
    model: nn.Module,
    run: Callable[[], Any],
    inputs: Inputs,
    cuts: Mapping[Cut, int] | None = None,
    read: Callable[[], int] = int,
    in_place: Container[int] = (),
) -> Sweep:
    """Run a network and write down every call of its modules.

    Args:
        model: the network, whose parameters require grad.
        run: calls it on `inputs`.
        cuts: moments at which the tensor goes on without its graph, each with a number.
        read: a meter, read at each cut.
        in_place: numbers of cuts after which the tensor is changed in place.
    """
    by_module: dict[nn.Module, list[tuple[Cut, int]]] = defaultdict(list)
    for cut, number in (cuts or {}).items():
        by_module[cut[0]].append((cut, number))
    found = Sweep()
    taint = Taint(inputs)
    meter = Flops()
    counts: dict[nn.Module, int] = defaultdict(int)
    stack: list[Call] = []
    outside = top_hooks()
    again: list[tuple[nn.Module, list[Tensor]]] = []  # enclosing calls that may run again

    def moments(call: Call, value: Any, entry: bool, at: int, flops: int) -> Iterator[Moment]:
        seen: set[int] = set()
        closes = not entry and (
            call.hooks != (stack[-1].hooks if stack else outside)
            or type(call.module).__call__ is not nn.Module.__call__
        )
        for path, tensor in pytree.tree_flatten_with_path(value)[0]:
            if not isinstance(tensor, Tensor) or tensor.grad_fn is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            yield Moment(
                module=call.module,
                n=call.n,
                entry=entry,
                path=tuple(_key(key) for key in path),
                order=at,
                time=call.starts if entry else call.stops,
                call=call,
                output=(tensor.grad_fn, tensor.output_nr),
                shape=tuple(tensor.shape),
                version=tensor._version,
                tensor=tensor,
                inside=(top_hooks() != outside and not closes)
                or any(_indivisible(c.module) for c in stack if c is not call),
                closes=closes,
                sheltered=entry and any(any(t is tensor for t in ts) for _, ts in again),
                flops=flops,
            )

    events: list[tuple[int, Any]] = []  # the next node's number, and how tensors are saved

    def event() -> int:
        events.append((now(), top_hooks()))
        return len(events) - 1

    def cross(module: nn.Module, n: int, entry: bool, at: int, value: Any) -> Any:
        for (_, k, e, path), number in by_module.get(module, ()):
            if (k, e) != (n, entry):
                continue
            tensor = at_path(value, path)
            if not isinstance(tensor, Tensor):
                continue
            time, leaf = now(), tensor.detach().requires_grad_()
            taint.mark(leaf)
            # What changes it in place may not change a leaf.
            given = leaf.clone() if number in in_place else leaf
            buffers = buffers_of([model, *(c.module for c in stack)])
            found.crossings[number] = Crossing(at, time, tensor, leaf, given, read(), buffers)
            value = replaced(value, tensor, given)
        return value

    def noted(call: Call, value: Any, entry: bool, at: int) -> list[Moment]:
        with torch._C.DisableTorchFunction():  # what is read here is none of the network's
            return list(moments(call, value, entry, at, meter.total))

    def handle(hook: intercept.Intercepted, args: Any, kwargs: Any) -> Any:
        module = hook.module
        if module is model:
            return hook.as_written(*args, **kwargs)
        n, begins = counts[module], event()
        counts[module] += 1
        args, kwargs = cross(module, n, True, begins, (args, kwargs))
        given = tensors((args, kwargs))
        call = Call(
            module, n, len(stack), begins, now(), top_hooks(), given[0] if len(given) == 1 else None
        )
        found.calls.append(call)
        stack.append(call)
        shelters = type(module).__call__ is not nn.Module.__call__
        if shelters:
            again.append((module, given))
        found.moments += noted(call, (args, kwargs), True, call.begins)
        result = hook.as_written(*args, **kwargs)
        if shelters:
            again.pop()
        stack.pop()
        call.ends, call.stops = event(), now()
        gave = tensors(result)
        call.gave = gave[0] if isinstance(result, Tensor) else None
        call.sends = bool(gave) and all(
            leaf.requires_grad if isinstance(leaf, Tensor) else leaf is None
            for leaf in leaves(result)
        )
        call.made = tuple(t.grad_fn._sequence_nr() for t in gave if t.grad_fn is not None)
        found.moments += noted(call, result, False, call.ends)
        return cross(module, n, False, call.ends, result)

    counting = meter if cuts is None else contextlib.nullcontext()
    with intercept.intercepted(model.modules()), torch.enable_grad(), taint, counting:
        found.result = intercept.Watched.of(handle).begin(run)
    found.moments.sort(key=lambda moment: moment.order)
    for moment in found.moments:
        here, after = events[moment.order], (events[moment.order + 1 :] or [(0, outside)])[0]
        if here[1] != outside and (after[1] == here[1] or after[0] != here[0]):
            moment.inside = True  # the checkpoint goes on
    found.flops, found.tainted = meter.total, taint.nodes
    return found


def _indivisible(module: nn.Module) -> bool:
    """Whether a module says so, or its weights are sharded and gathered for its whole call."""
    sharded = hasattr(module, "set_reshard_after_backward")
    return sharded or bool(getattr(module, "indivisible", False))


def at_path(value: Any, path: Path) -> Any:
    """What is at a place in a nested structure."""
    for key in path:
        plain = isinstance(key, str) and not isinstance(value, Mapping)
        value = getattr(value, key) if plain else value[key]
    return value


def replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """A nested structure with another tensor in place of one, wherever that stands. A part that
    does not hold it stays the object that it is, because others may hold that, too."""
    if value is old:
        return new
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        parts = [replaced(part, old, new) for part in value]
        same = all(a is b for a, b in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    if isinstance(value, Tensor) or not any(leaf is old for leaf in leaves(value)):
        return value
    return pytree.tree_map_only(Tensor, lambda t: new if t is old else t, value)


def buffers_of(modules: Iterable[nn.Module]) -> dict[tuple[nn.Module, str], tuple[int, int]]:
    """Which tensor each buffer is, and how often it has been changed."""
    return {
        (m, key): (id(buffer), buffer._version)
        for m in modules
        for key, buffer in m._buffers.items()
        if buffer is not None
    }


def _key(entry: Any) -> Any:
    for name in ("idx", "key", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return entry


class Taint(TorchFunctionMode):
    """Marks the autograd nodes whose value depends on `inputs`, also where no gradient does: an
    embedding of tokens depends on them, one of positions does not."""

    def __init__(self, inputs: Inputs):
        super().__init__()
        self.kept = tensors(inputs)  # held, so that no identity is used twice
        self.known = {id(tensor) for tensor in self.kept}
        self.nodes: set[Node] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        gave = _flat(result)
        in_place = not gave or gave[0] is (args[0] if args else None)
        if in_place and getattr(func, "__name__", "").endswith("_"):  # also `__setitem__`
            gave = _flat(args[:1])
        if gave and any(map(self._depends, _flat(args, kwargs))):
            for tensor in gave:
                self.mark(tensor)
        return result

    def _depends(self, tensor: Tensor) -> bool:
        return (
            tensor.grad_fn in self.nodes if tensor.grad_fn is not None else id(tensor) in self.known
        )

    def mark(self, tensor: Tensor) -> None:
        # What is changed in place through a view goes on from the whole.
        whole = tensor._base if tensor._is_view() else None
        if whole is not None and whole.grad_fn is not None:
            self.nodes.add(whole.grad_fn)
        if tensor.grad_fn is not None:
            self.nodes.add(tensor.grad_fn)
        elif id(tensor) not in self.known:
            self.known.add(id(tensor))
            self.kept.append(tensor)


def _flat(*values: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, _PLAIN):
            continue
        elif isinstance(value, tuple | list):
            found += _flat(*value)
        elif isinstance(value, dict):
            found += _flat(*value.values())
    return found


_PLAIN = (int, float, str, torch.Size, torch.dtype, torch.device, type(None))


class Flops(TorchDispatchMode):
    """Counts floating-point operations as `torch.utils.flop_counter`, and those of recurrent
    layers' kernels, which it does not know.

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", None)
        count = flop_registry.get(packet) or _MORE.get(packet)
        if count is not None:
            self.total += count(*args, **kwargs, out_val=result)
        return result


def _of_rnn(x: Tensor, *rest: Any, out_val: Any = None, **_: Any) -> int:
    """Every weight of a layer multiplies every step's input, or state, once."""
    steps = x.numel() // x.shape[-1]
    weights = _flat(*rest)[:2]
    return 2 * steps * sum(w.numel() for w in weights if w.dim() == 2)


def _of_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    from torch.utils.flop_counter import sdpa_flop_count

    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _of_bilinear(a: Tensor, b: Tensor, c: Tensor, *_: Any, **__: Any) -> int:
    return 2 * b.numel() * len(a)


_MORE: dict[Any, Callable[..., int]] = {
    getattr(torch.ops.aten, name): count
    for name, count in {
        "mkldnn_rnn_layer": _of_rnn,
        "_cudnn_rnn": _of_rnn,
        "_trilinear": _of_bilinear,
        "_scaled_dot_product_flash_attention_for_cpu": _of_attention,
    }.items()
    if hasattr(torch.ops.aten, name)
}


class Graph:
    """The autograd graph behind a tensor.

    Args:
        root: the tensor, such as a network's class scores.
        tainted: as of `Sweep`.

    Attributes:
        order: the number of each node.
        data: the nodes whose value depends on the network's inputs; the others make tables.
        uses: of each parameter, the numbers of the data nodes that read it, or a table made of it;
            increasing.
    """

    def __init__(self, root: Tensor, tainted: set[Node]):
        self.order: dict[Node, int] = {}
        self._edges: dict[Node, list[Node]] = {}
        self._users: dict[Output, list[float]] = defaultdict(list)
        parameters: dict[Node, list[Tensor]] = defaultdict(list)
        todo: list[Node] = []
        if root.grad_fn is not None:
            todo.append(root.grad_fn)
            self._users[root.grad_fn, root.output_nr].append(math.inf)
        while todo:
            node = todo.pop()
            if node in self.order:
                continue
            number = self.order[node] = node._sequence_nr()
            edges = self._edges[node] = []
            for following, index in node.next_functions:
                if following is None:
                    continue
                if hasattr(following, "variable"):
                    parameters[node].append(following.variable)
                    continue
                edges.append(following)
                self._users[following, index].append(number)
                todo.append(following)
        in_order = sorted(self.order, key=self.order.__getitem__)
        self.data: set[Node] = set()
        for node in in_order:
            known = node in tainted or isinstance(node, torch.autograd.function.BackwardCFunction)
            if known or any(n in self.data for n in self._edges[node]):
                self.data.add(node)
        # Of a table, the data nodes that read it, or what is made of it.
        readers: dict[Node, set[int]] = defaultdict(set)
        for node in reversed(in_order):
            reads = {self.order[node]} if node in self.data else readers[node]
            for following in self._edges[node]:
                if following not in self.data:
                    readers[following] |= reads
        uses: dict[Tensor, set[int]] = defaultdict(set)
        for node, variables in parameters.items():
            for variable in variables:
                uses[variable] |= {self.order[node]} if node in self.data else readers[node]
        self.uses = {variable: sorted(numbers) for variable, numbers in uses.items()}
        lives = [(self.order[o[0]], max(numbers), o) for o, numbers in self._users.items()]
        self.lives = sorted((l for l in lives if l[2][0] in self.data), key=lambda l: l[0])
        self.tables = [l for l in lives if l[2][0] not in self.data]
        self._born = [born for born, _, _ in self.lives]
        self._sums = [0, *itertools.accumulate(range(len(self.lives)))]
        dying = sorted((last, i) for i, (_, last, _) in enumerate(self.lives))
        self._dies = [last for last, _ in dying]
        self._lost = [0, *itertools.accumulate(i for _, i in dying)]

    def the_one_alive(self, time: int) -> Output | None:
        """The tensor that is alive at a moment; None where it is not one alone."""
        born, died = bisect.bisect_left(self._born, time), bisect.bisect_left(self._dies, time)
        if born - died != 1:
            return None
        return self.lives[self._sums[born] - self._lost[died]][2]

    def alive(self, time: int) -> list[Output]:
        """All that are alive at a moment and depend on the network's inputs."""
        return [output for born, last, output in self.lives if born < time <= last]

    def tables_at(self, time: int) -> list[int]:
        """The numbers of the nodes that make what is alive at a moment and depends on parameters
        alone."""
        todo = [output[0] for born, last, output in self.tables if born < time <= last]
        found: set[Node] = set()
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo += self._edges[node]
        return [self.order[node] for node in found]

    def used_only_before(self, output: Output, time: int, until: float) -> bool:
        """Whether every use of a tensor after `time` is before `until`."""
        return all(time > use or use < until for use in self._users.get(output, ()))

    def parameters_used(self, start: float, end: float) -> bool:
        """Whether a parameter is used from one moment to another."""
        return any(
            bisect.bisect_left(numbers, start) < bisect.bisect_left(numbers, end)
            for numbers in self.uses.values()
        )


def candidates(found: Sweep, graph: Graph) -> list[Moment]:
    """The cut points, one moment for each tensor, in order: what a module is called with, the
    outermost of several; else what a module returns, the outermost again; else what is entered
    within a call that may run again."""
    points: list[Moment] = []
    for moment in found.moments:
        if not graph.parameters_used(moment.time, float("inf")):
            break
        if moment.inside or graph.the_one_alive(moment.time) != moment.output:
            continue
        if moment.entry and not graph.used_only_before(
            moment.output, moment.time, moment.call.stops
        ):
            continue
        if not points or points[-1].output != moment.output:
            points.append(moment)
        elif _preferred(moment, points[-1]):
            points[-1] = moment
    return points


def _preferred(moment: Moment, before: Moment) -> bool:
    """Whether a later moment of the same tensor is the better place to cut."""
    if _rank(moment) != _rank(before):
        passed_on = before.entry and before.call.ends <= moment.order  # as dropout in eval mode
        return _rank(moment) < _rank(before) or (passed_on and not moment.sheltered)
    return not moment.entry or before.call.ends < moment.order


def _rank(moment: Moment) -> int:
    return 2 if moment.sheltered else 0 if moment.entry else 1
