"""A network as the stretches of its own forward."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from layerwise.blocks import intercept
from layerwise.blocks.chain import Blocks, Passes, Shape
from layerwise.blocks.passes import Pass, Structure
from layerwise.blocks.sweep import Call, Path, at_path, buffers_of, replaced
from layerwise.blocks.unchanged import seed, unchanged
from layerwise.errors import InputError, reason
from layerwise.inputs import Inputs, Take, call, leading, moved, plain, scores, signature

Place = tuple[
    nn.Module, str
]  # of a parameter or buffer: the module that has it, and its name there
NEEDS_MORE = "it needs more of earlier blocks than its input"
SIGNATURES = 64  # shapes of batches for which the shapes inside the network are kept


@dataclass(eq=False)
class Boundary:
    """Where a block begins: when a module is called with a tensor, or returns it.

    Attributes:
        number: of the block that begins.
        module: the module.
        n: which of its calls, from 0.
        entry: whether the tensor is an argument of the call; else it is returned.
        path: where in the arguments, or in what is returned.
        axis: which axis of the tensor is the batch.
        order: the place among all beginnings and ends of calls in the run that found it.
        closes: whether an activation checkpoint may end there.
        alone: whether the tensor is the first argument, and its first axis the batch.
    """

    number: int
    module: nn.Module
    n: int
    entry: bool
    path: Path
    axis: int
    order: int
    closes: bool

    def __post_init__(self) -> None:
        self.alone = self.entry and self.path == (0, 0) and self.axis == 0

    def find(self, value: Any) -> Any:
        """The tensor, in a call's (args, kwargs) or in what it returned."""
        return at_path(value, self.path)

    def replace(self, value: Any, h: Tensor, given: Tensor) -> Any:
        """The same with another tensor, everywhere."""
        return value if given is h else replaced(value, h, given)

    def outwards(self, h: Tensor) -> Tensor:
        """With the batch as the first axis."""
        return h.movedim(self.axis, 0) if self.axis else h

    def inwards(self, h: Tensor) -> Tensor:
        return h.movedim(0, self.axis) if self.axis else h


class Stretches(Blocks):
    """The blocks that `cut` makes of a network: stretches of the network's own forward.

    Nothing of the network is copied, traced or replaced, so whatever it is afterwards (its mode,
    its attributes, its hooks) the blocks are. `blocks.passes(inputs)` runs them one after the
    other, in one forward that is paused where a block ends.

    Attributes:
        model: the network.
        boundaries: where every block but the first begins.
        shared: the blocks that use a parameter, of those that several use, under its name.
        shares: whether a tensor that depends on parameters alone is used by several blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        boundaries: Sequence[Boundary],
        *,
        example: Inputs,
        names: Sequence[str],
        shapes: Sequence[Shape],
        take: Take,
        calls: Sequence[Call],
        owners: Mapping[Place, int],
        tops: Sequence[Sequence[nn.Module]],
        chains: Sequence[Sequence[nn.Module] | None],
        tables: Sequence[Sequence[int]],
        shared: Mapping[str, Sequence[int]],
    ):
        nn.Module.__init__(self)
        self.model = model
        self.boundaries = tuple(boundaries)
        self.names = tuple(names)
        self.example = example
        self.take = take
        self.keep_shapes(leading(example), shapes)
        self.shares, self.shared = any(tables), dict(shared)
        self.entries = {(b.module, b.n): b for b in boundaries if b.entry}
        self.exits = {(b.module, b.n): b for b in boundaries if not b.entry}
        self.around = _around(boundaries, calls)
        self.hollow: dict[nn.Module, nn.Module] = {}
        self.moving: dict[int, list[Place]] = {}
        self._names = {module: name for name, module in model.named_modules()}
        self._calls = tuple(replace(c, given=None, gave=None, hooks=None) for c in calls)
        self._tables = tuple(map(tuple, tables))
        self.owners = dict(owners)
        self._watched: dict[int, tuple[nn.Module, ...]] = {}
        self._passed: dict[int, frozenset[nn.Module]] = {}
        self._structures: dict[Any, dict[tuple[nn.Module, int], Structure]] = {}
        self._differs: dict[int, str] = {}  # why a block by itself is not what it is in order
        self._reads: dict[int, Any] = {}
        blocks = []
        for k, chain in enumerate(chains):
            places = [place for place, owner in owners.items() if owner == k]
            blocks.append(Stretch(self, k, tops[k], places, chain))
        self._blocks = tuple(blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._blocks)

    def __getitem__(self, i: int) -> Stretch:
        return self._blocks[i]

    def forward(self, inputs: Inputs) -> Tensor:
        """The network's class scores."""
        return self.scores(call(self.model, inputs))

    def scores(self, output: Any) -> Tensor:
        """The class scores in what the network returns."""
        return (
            output
            if self.take is None and isinstance(output, Tensor)
            else scores(output, self.take)
        )

    def passes(self, inputs: Inputs) -> Passes:
        return ForwardPasses(self, inputs)

    def name_of(self, module: nn.Module, key: str = "") -> str:
        """The network's name of a module, or of a tensor in it."""
        name = self._names.get(module, "")
        return f"{name}.{key}" if name and key else name or key

    def several_inputs(self) -> bool:
        return not isinstance(self.example, Tensor)

    def watched(self, at: int) -> tuple[nn.Module, ...]:
        """The modules whose calls a pass from block `at` on intercepts."""
        if at not in self._watched:
            modules = dict.fromkeys(b.module for b in self.boundaries if b.number >= at)
            self._watched[at] = tuple(modules | dict.fromkeys(self.passed_over(at) if at else ()))
        compiled = [m for m in self.around if intercept.is_compiled(m)]
        return (*self._watched[at], *compiled) if compiled else self._watched[at]

    def passed_over(self, at: int) -> frozenset[nn.Module]:
        """The modules that need not run for block `at` to begin: the outermost ones all of whose
        calls lie before it, that return nothing but tensors with a gradient, none of which a later
        block needs except the block's input."""
        if at not in self._passed:
            boundary = self.boundaries[at - 1]
            begins = boundary.order + (not boundary.entry)
            kept: dict[nn.Module, bool] = {}
            for c in self._calls:
                tables = any(c.starts <= n < c.stops or n in c.made for n in self._tables[at - 1])
                free = c.ends < begins and c.sends and not tables
                kept[c.module] = kept.get(c.module, True) and free
            free = {module for module, yes in kept.items() if yes}
            inner = {m for module in free for m in module.modules() if m is not module}
            self._passed[at] = frozenset(free - inner)
        return self._passed[at]

    def structures(self, inputs: Inputs) -> dict[tuple[nn.Module, int], Structure]:
        """What modules return in a pass of such inputs, but for values; found once for all batches
        of the same shapes."""
        if self.hollow:
            return {}
        key = signature(inputs)
        if key not in self._structures:
            if len(self._structures) >= SIGNATURES:
                self._structures.pop(next(iter(self._structures)))
            passed = set().union(*(self.passed_over(b.number) for b in self.boundaries))
            self._structures[key] = self._record(inputs, passed)
        return self._structures[key]

    def _record(
        self, inputs: Inputs, passed: set[nn.Module]
    ) -> dict[tuple[nn.Module, int], Structure]:
        """What these modules return."""
        found: dict[tuple[nn.Module, int], Structure] = {}
        counts: dict[nn.Module, int] = {}

        def handle(hook: intercept.Intercepted, args: Any, kwargs: Any) -> Any:
            module = hook.module
            n = counts[module] = counts.get(module, -1) + 1
            result = hook.call(*args, **kwargs)
            if module in passed:
                found[module, n] = Structure(result)
            return result

        with unchanged(self.model), intercept.intercepted(passed), torch.no_grad():
            self.model.eval()
            model = intercept.uncompiled(self.model)
            intercept.Watched.of(handle).begin(lambda: call(model, inputs))
        return found

    def after(self, k: int) -> dict[tuple[nn.Module, int], Structure]:
        """What the modules of later blocks return for the example."""
        place = self.boundaries[k].order + (not self.boundaries[k].entry)
        later: dict[nn.Module, bool] = {}
        for c in self._calls:
            later[c.module] = later.get(c.module, True) and c.begins >= place and c.sends
        return self._record(self._example_here(), {m for m, yes in later.items() if yes})

    def run_to_the_end(
        self, k: int, inputs: Inputs, structures: Mapping[tuple[nn.Module, int], Structure]
    ) -> Tensor:
        """Block k's output in a forward that runs to its end over the modules of later blocks,
        which return zeros as `after` tells."""
        boundary = self.boundaries[k]
        rows, was = leading(inputs).shape[0], len(leading(self.example))
        found: list[Tensor] = []
        counts: dict[nn.Module, int] = {}

        def cross(value: Any) -> Any:
            found.append(boundary.outwards(boundary.find(value)))
            return value

        def handle(hook: intercept.Intercepted, args: Any, kwargs: Any) -> Any:
            module = hook.module
            n = counts[module] = counts.get(module, -1) + 1
            here = module is boundary.module and n == boundary.n
            if here and boundary.entry:
                cross((args, kwargs))
            if found and (module, n) in structures:
                return structures[module, n].zeros(rows, was)
            result = hook.call(*args, **kwargs)
            return cross(result) if here and not boundary.entry else result

        with intercept.intercepted({m for m, _ in structures} | {boundary.module}):
            model = intercept.uncompiled(self.model)
            intercept.Watched.of(handle).begin(lambda: call(model, inputs))
        return found[0]

    def alone(self, k: int, h: Any, inputs: Inputs = None) -> Tensor:
        """Block k by itself on h, (B, ...): nothing but this block runs, on whatever else it needs
        of `inputs`.

        Raises:
            InputError: the block needs `inputs` and has none; it needs more of earlier blocks than
                its input.
        """
        if k:
            self.check_alone(k)
            inputs = self.inputs_for(k, h, inputs)
        run = Pass(self, inputs, k)
        try:
            return run.run(h)
        finally:
            run.close()

    def inputs_for(self, k: int, h: Tensor, inputs: Inputs) -> Inputs:
        """What the network is called with to run block k on h."""
        if inputs is not None and len(leading(inputs)) == len(h):
            return inputs
        if self.reads_inputs(k):
            had = "none" if inputs is None else f"{len(leading(inputs))} rows"
            raise InputError(
                f"block {self.names[k]!r} of {type(self.model).__name__} reads the network's "
                f"inputs besides its own, {len(h)} rows, and got {had}; give them: "
                f"blocks[{k}](h, inputs)"
            )
        return self.zeros(len(h), h)

    def reads_inputs(self, k: int) -> bool:
        """Whether block k > 0 depends on the network's inputs other than through the output of the
        block before it."""
        if k not in self._reads:
            self._reads[k] = self.several_inputs()
            if not self._reads[k]:
                self._compare_alone(self.zeros_like_example(), [k], self._reads)
        return bool(self._reads[k])

    def zeros_like_example(self) -> Inputs:
        return pytree.tree_map_only(Tensor, torch.zeros_like, plain(self._example_here()))

    def up_to(self, k: int) -> nn.Module:
        return UpTo(self, k)

    def key(self, k: int, name: str) -> str:
        return f"model.{name}"

    def check_alone(self, k: int) -> None:
        """See that block k runs by itself. The first call looks at all blocks.

        Raises:
            InputError: it does not, or computes something else than in the network's forward.
        """
        if k and k not in self._differs:
            self._compare_alone(self._example_here(), range(1, len(self)), self._differs)
        if why := self._differs.get(k):
            raise InputError(
                f"{type(self.model).__name__}: block {self.names[k]!r} does not run by itself "
                f"({why}), which stages and rules that run blocks again ask for; cut elsewhere, or "
                "take a rule that runs blocks in order, such as DGL"
            )

    def _compare_alone(
        self, inputs: Inputs, blocks: Iterable[int], differs: dict[int, Any]
    ) -> None:
        """Run blocks by themselves on the example, called with `inputs`: under each one's number
        why it does not give what it gives in order, or nothing where it does."""
        example, wanted = self._example_here(), set(blocks)
        device = leading(example).device
        for k in wanted:
            differs[k] = ""  # no check within the check
        with unchanged(self.model), torch.no_grad():
            self.model.eval()
            with self.passes(example) as passes:
                h = example
                for k in range(max(wanted) + 1):
                    start = h.clone() if k in wanted else h
                    seed(device)
                    h = passes.run(k, h)
                    if k not in wanted:
                        continue
                    expected = h.clone()
                    try:
                        seed(device)
                        with contextlib.closing(Pass(self, inputs, k)) as run:
                            found = run.run(start.clone())
                        same = found.shape == expected.shape and torch.equal(found, expected)
                        differs[k] = "" if same else NEEDS_MORE
                    except Exception as error:
                        differs[k] = f"it raises {type(error).__name__}: {reason(error)}"
                    if not differs[k]:
                        self._find_moving(k, start, inputs)

    def _find_moving(self, k: int, start: Tensor, inputs: Inputs) -> None:
        """The buffers outside of block k that a forward changes before the block begins."""
        own = {m for top in self._blocks[k].tops for m in top.modules()}
        others = [m for m in self.model.modules() if m not in own]
        before = buffers_of(others)
        if not before:
            return
        self.model.train()
        with contextlib.suppress(Exception), contextlib.closing(Pass(self, inputs, k)) as run:
            run.run(start)
        self.model.eval()
        after = buffers_of(others)
        self.moving[k] = [place for place, value in before.items() if after.get(place) != value]

    def check_there(self) -> None:
        """See that the modules where blocks begin are still the network's.

        Raises:
            InputError: one is not.
        """
        there = set(self.model.modules())
        for boundary in self.boundaries:
            if boundary.module not in there:
                raise InputError(
                    f"{type(self.model).__name__}: block {self.names[boundary.number]!r} began "
                    "with a module that is no longer in the network; cut it again"
                )

    def _example_here(self) -> Inputs:
        """The example on the device of the network."""
        weight = next(self.model.parameters(), None)
        if weight is None or weight.device.type == "meta":
            return self.example
        return moved(self.example, weight.device)

    def keep(self, blocks: Iterable[int]) -> None:
        kept = sorted(blocks)
        self._refuse_shared_parameters()
        first = kept[0]
        self.check_alone(first)
        self.reads_inputs(first) if first else None
        passed = self.passed_over(first) if first else frozenset()
        # Without memory: they only tell the shapes of what their modules return.
        self.hollow = {module: copy.deepcopy(module).to("meta") for module in passed}
        later = [m for block in self._blocks[kept[-1] + 1 :] for m in block.tops]
        for module in (*passed, *later):
            module.to("cpu")

    def _refuse_shared_parameters(self) -> None:
        for name, blocks in self.shared.items():
            raise InputError(
                f"stages: parameter {name!r} of {type(self.model).__name__} is used by blocks "
                f"{', '.join(repr(self.names[k]) for k in blocks)}, and a stage has the parameters "
                "of its own blocks alone; untie it (tie_word_embeddings=False in transformers), or "
                "train in one process"
            )


class Stretch(nn.Module):
    """A block of a network that was cut. Called by itself it maps its input to its output; its
    parameters have the network's names.

    Attributes:
        number: of the block.
        outside: the modules, and the names in them, of parameters and buffers of modules that lie
            in several blocks.
        tops: the outermost modules all of whose calls lie in the block.
        reads_inputs: that a call may be given the network's inputs.
        chain: the block as modules that are called one after the other and nothing else; None where
            it is not such a chain.
    """

    network: Stretches
    number: int
    outside: tuple[Place, ...]
    tops: tuple[nn.Module, ...]
    chain: tuple[nn.Module, ...] | None
    reads_inputs = True

    def __init__(
        self,
        network: Stretches,
        number: int,
        tops: Sequence[nn.Module],
        places: Sequence[Place],
        chain: Sequence[nn.Module] | None,
    ):
        super().__init__()
        inside = {m for top in tops for m in top.modules()}
        # Not registered: they are the network's.
        self.__dict__.update(
            network=network,
            number=number,
            tops=tuple(tops),
            outside=tuple(place for place in places if place[0] not in inside),
            chain=None if chain is None else tuple(chain),
        )

    @property
    def places(self) -> Iterator[Place]:
        """The modules, and the names in them, of the block's parameters and buffers."""
        owners = self.network.owners
        for top in self.tops:
            for module in top.modules():
                for key in (*module._parameters, *module._buffers):
                    if owners.get((module, key), self.number) == self.number:
                        yield module, key
        yield from self.outside

    def forward(self, h: Tensor, inputs: Inputs = None) -> Tensor:
        """The block's output, (B, ...).

        Args:
            h: its input, (B, ...); of the first block the network's inputs.
            inputs: the network's inputs, where the block reads more of them than its input.

        Raises:
            InputError: the block does not run by itself, or needs the inputs.
        """
        return self.network.alone(self.number, h, inputs)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that the block owns, under the network's names. A parameter that several blocks use
        belongs to the last of them, where its gradient is complete."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Those that the block owns, under the network's names."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def _named(
        self, table: str, prefix: str, recurse: bool, once: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for module, key in self.places if recurse else ():
            tensor = module.__dict__[table].get(key)
            if tensor is None or (once and id(tensor) in seen):
                continue
            seen.add(id(tensor))
            yield (prefix and prefix + ".") + self.network.name_of(module, key), tensor

    def get_parameter(self, target: str) -> nn.Parameter:
        """The parameter of this name in the network."""
        return self.network.model.get_parameter(target)

    def named_modules(  # pyrefly: ignore
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """The block itself, and the modules all of whose calls lie in it."""
        memo = set() if memo is None else memo
        if remove_duplicate and self in memo:
            return
        memo.add(self)
        yield prefix, self
        for top in self.tops:
            inner = (prefix and prefix + ".") + self.network.name_of(top)
            yield from top.named_modules(memo, inner, remove_duplicate)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        for top in self.tops:
            yield self.network.name_of(top), top

    def state_dict(  # type: ignore[override]
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Tensor]:
        """The block's parameters and persistent buffers, under the network's names."""
        found = {} if destination is None else destination
        for name, tensor in self._persistent():
            found[prefix + name] = tensor if keep_vars else tensor.detach()
        return found

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        with torch.no_grad():
            for name, tensor in self._persistent():
                if prefix + name in state_dict:
                    tensor.copy_(state_dict[prefix + name])
                else:
                    missing_keys.append(prefix + name)

    def _persistent(self) -> Iterator[tuple[str, Tensor]]:
        for module, key in self.places:
            tensor = module._parameters.get(key, module._buffers.get(key))
            if tensor is not None and key not in module._non_persistent_buffers_set:
                yield self.network.name_of(module, key), tensor

    def train(self, mode: bool = True) -> Stretch:
        """Set the mode of the modules all of whose calls lie in the block."""
        for top in self.tops:
            top.train(mode)
        return self

    @property
    def training(self) -> bool:  # type: ignore[override]
        return self.network.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        """A block has no mode of its own."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the modules all of whose calls lie in the block, each by itself."""
        for top in self.tops:
            top.compile(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Stretch:
        for top in self.tops:
            top._apply(fn)
        whole = {m for top in self.tops for m in top.modules()}
        with torch.no_grad():
            for module, key in self.places:
                if module in whole:
                    continue
                if (parameter := module._parameters.get(key)) is not None:
                    parameter.data = fn(parameter.data)
                elif (buffer := module._buffers.get(key)) is not None:
                    module._buffers[key] = fn(buffer)
        return self

    def copied(self) -> Stretch:
        """The block with parameters and buffers of its own, and everything else of the network
        shared."""
        own = {id(t) for t in (*self.parameters(), *self.buffers())}
        whole = (*self.network.parameters(), *self.network.buffers())
        memo: dict[int, Any] = {id(t): t for t in whole if id(t) not in own}
        memo[id(self.network.example)] = self.network.example
        if self.number:
            self.network.check_alone(self.number)
            self.network.reads_inputs(self.number)
        made = copy.deepcopy(self.network, memo)[self.number]
        # A module that it becomes a part of finds these here, and all others in `tops`.
        inside = {m for top in made.tops for m in top.modules()}
        for module, key in made.places:
            if module not in inside:
                name = made.network.name_of(module, key)
                for table in ("_parameters", "_buffers"):
                    if module.__dict__[table].get(key) is not None:
                        made.__dict__[table][name] = module.__dict__[table][key]
        return made

    def extra_repr(self) -> str:
        return f"{self.network.names[self.number]!r} of {type(self.network.model).__name__}"


class UpTo(nn.Module):
    """The network that ends with a block. Called as the network is, it gives the block's output.

    Where the call is traced to be exported, the forward runs to its end and passes over the modules
    of later blocks, because an export follows no forward that is given up; what is left of them
    leads nowhere and is dropped.
    """

    blocks: Stretches

    def __init__(self, blocks: Stretches, k: int):
        super().__init__()
        # Not registered: what is saved and exported is what the blocks up to this one have.
        self.__dict__["blocks"], self.k = blocks, k
        own = blocks._blocks[: k + 1]
        self.parts = nn.ModuleList(top for block in own for top in block.tops)
        inside = set(self.parts.modules())
        for module, key in (place for block in own for place in block.places):
            name = blocks.name_of(module, key).replace(".", "/")
            if module in inside:
                continue
            if module._parameters.get(key) is not None:
                self.register_parameter(name, module._parameters[key])
            elif module._buffers.get(key) is not None:
                self.register_buffer(name, module._buffers[key])
        self.after = {} if k == len(blocks) - 1 else blocks.after(k)

    def train(self, mode: bool = True) -> UpTo:
        """As usual, and with it the network that it is a part of."""
        self.blocks.model.train(mode)
        return super().train(mode)

    @torch.compiler.disable  # compiled code cannot be paused
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        blocks, k = self.blocks, self.k
        if k == len(blocks) - 1:
            return blocks.scores(blocks.model(*args, **kwargs))
        inputs: Inputs = args[0] if len(args) == 1 else args
        if kwargs:
            inputs = inspect.signature(blocks.model.forward).bind(*args, **kwargs).arguments
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return blocks.run_to_the_end(k, inputs, self.after)
        with contextlib.closing(Pass(blocks)) as run:
            h: Any = inputs
            for _ in range(k + 1):
                h = run.run(h)
            return h


class ForwardPasses(Passes):
    """A batch's way through a network that was cut."""

    def __init__(self, blocks: Stretches, inputs: Inputs):
        super().__init__(blocks, inputs)
        self.chain, self.stretches = blocks, blocks._blocks
        self._inputs: dict[int, Inputs] = {0: inputs}
        self._passes: dict[int, Pass] = {}

    def run(self, k: int, h: Any, stream: int = 0) -> Tensor:
        running = self._passes.get(stream)
        # Where the rows are others, such as without some views of the samples, the forward would
        # still go on with those that it began with.
        if running is None or running.next != k or k == 0 or h.shape[0] != running.rows:
            if running is not None:
                running.close()
            running = self._passes[stream] = self._begin(k, h, stream)
        block = self.stretches[k]
        if block._forward_pre_hooks or block._forward_hooks:
            out = _with_hooks(block, running.run, h)
        else:
            out = running.run(h)
        running.rows = out.shape[0]
        return out

    def _begin(self, k: int, h: Any, stream: int) -> Pass:
        if k == 0:
            self._inputs[stream] = h
            return Pass(self.chain)
        self.chain.check_alone(k)
        inputs = self._inputs.get(stream, self._inputs[0])
        return Pass(self.chain, self.chain.inputs_for(k, h, inputs), k)

    def again(self, k: int, h: Any, stream: int = 0) -> Tensor:
        return self.chain.alone(k, h, self._inputs.get(stream, self._inputs[0]) if k else None)

    def close(self) -> None:
        for running in self._passes.values():
            running.close()
        self._passes.clear()


def _with_hooks(block: Stretch, run: Callable[[Any], Tensor], h: Any) -> Tensor:
    """What a block's own hooks make of its run, as if it were called by itself."""
    for before in block._forward_pre_hooks.values():
        given = before(block, (h,))
        h = h if given is None else given[0] if isinstance(given, tuple) else given
    out = run(h)
    for after in block._forward_hooks.values():
        given = after(block, (h,), out)
        out = out if given is None else given
    return out


def _around(boundaries: Iterable[Boundary], calls: Iterable[Call]) -> frozenset[nn.Module]:
    """The modules in whose calls a block begins."""
    orders = [b.order for b in boundaries]
    return frozenset(c.module for c in calls if any(c.begins < o < c.ends for o in orders))
