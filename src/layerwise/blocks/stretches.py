"""A network that was cut, as a chain of blocks. `cut` makes it (`cutting/division.py`).

Three things are done with it, each in a file of its own:

    passes.py   a batch runs through the blocks in order: `Stretches.passes`
    alone.py    one block runs by itself: `Stretches.alone`, `Stretch.forward`
    up_to.py    the network up to a block becomes a module: `Stretches.up_to`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from layerwise.blocks import intercept
from layerwise.blocks.alone import Alone
from layerwise.blocks.boundary import Boundary
from layerwise.blocks.chain import Blocks, Passes
from layerwise.blocks.cutting.recording import Call
from layerwise.blocks.layout import Shape
from layerwise.blocks.passes import ForwardPasses
from layerwise.blocks.stretch import Place, Stretch
from layerwise.errors import InputError
from layerwise.inputs import Inputs, Take, call, converted, leading, moved, scores


class Stretches(Blocks):
    """The blocks that `cut` makes of a network: stretches of the network's own forward.

    Nothing of the network is copied, traced or replaced. Whatever the network becomes afterwards
    (its mode, its attributes, its hooks), the blocks become, too.

    Args:
        model: the network.
        boundaries: where each block but the first begins, in order.
        example: the batch with which it was cut.
        names: the blocks' names.
        shapes: the shape of each block's output, without the batch dimension.
        take: which part of the network's output are the class scores.
        calls: the calls of all modules in the run in which `cut` found the boundaries.
        owners: the number of the block that each parameter and buffer belongs to.
        tops: for each block, the outermost modules all of whose calls lie in it.
        chains: each block as modules called one after the other; None for a block that is more.
        tables: for each boundary, the times of the autograd nodes that make the tables which cross
            there: tensors that depend on parameters alone.
        shared: the parameters that several blocks use: by name, the numbers of these blocks.

    Attributes:
        model, boundaries, names, example, take, owners, shared: as given.
        stretches: the blocks.
        alone: runs blocks by themselves.
        shares: whether a table is used by several blocks, so that its graph is differentiated more
            than once.
        entries, exits: by (module, n-th call), the boundaries at the entry, and exit, of a call.
        enclosing: the modules within whose calls a block begins.
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
        weight = next(model.parameters(), None)
        self._example_follows = weight is not None and weight.dtype == leading(example).dtype
        self.take = take
        self.keep_shapes(leading(example), shapes)
        # Without the tensors and hooks of the run, which must not be kept.
        self.calls = tuple(replace(c, given=None, gave=None, hooks=None) for c in calls)
        self.owners = dict(owners)
        self.tables = tuple(map(tuple, tables))
        self.shares, self.shared = any(tables), dict(shared)
        self.entries = {(b.module, b.n): b for b in boundaries if b.entry}
        self.exits = {(b.module, b.n): b for b in boundaries if not b.entry}
        self.enclosing = _enclosing(boundaries, calls)
        self.alone = Alone(self)
        self._names = {module: name for name, module in model.named_modules()}
        self._to_intercept: dict[int, tuple[nn.Module, ...]] = {}
        blocks = []
        for k, chain in enumerate(chains):
            places = [place for place, owner in owners.items() if owner == k]
            blocks.append(Stretch(self, k, tops[k], places, chain))
        self.stretches = tuple(blocks)

    def __len__(self) -> int:
        return len(self.stretches)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.stretches)

    def __getitem__(self, i: int) -> Stretch:
        return self.stretches[i]

    def forward(self, inputs: Inputs) -> Tensor:
        """The network's class scores."""
        return self.scores(call(self.model, inputs))

    def scores(self, output: Any) -> Tensor:
        """The class scores in the network's output."""
        return (
            output
            if self.take is None and isinstance(output, Tensor)
            else scores(output, self.take)
        )

    def passes(self, inputs: Inputs) -> Passes:
        return ForwardPasses(self, inputs)

    def is_sequential(self) -> bool:
        """Whether a forward of the network is nothing but calls of the modules of all `chain`s, one
        after the other: the network is an `nn.Sequential`, as it was when it was cut, and so is
        each module within which a block begins; and nobody watches these."""
        chains = [block.chain for block in self.stretches]
        if self.take is not None or None in chains or _has_any_global_hook():
            return False
        containers = {self.model, *self.enclosing}
        if any(type(m) is not nn.Sequential or _is_watched(m) for m in containers):
            return False
        parts: list[nn.Module] = []
        waiting = [self.model]
        while waiting:
            module = waiting.pop()
            if module in containers:
                waiting += reversed(module._modules.values())  # type: ignore[arg-type]
            else:
                parts.append(module)
        return parts == [module for chain in chains for module in chain or ()]

    def up_to(self, k: int) -> nn.Module:
        from layerwise.blocks.up_to import UpTo  # imports PyTorch's compiler, and only needed here

        return UpTo(self, k)

    def key(self, k: int, name: str) -> str:
        return f"model.{name}"

    def reads_inputs(self, k: int) -> bool:
        return self.alone.reads_inputs(k)

    def check_alone(self, k: int) -> None:
        """Check that block k runs by itself. The first call checks all blocks.

        Raises:
            InputError: it does not run, or computes something else than in the network's forward.
        """
        self.alone.check(k)

    def keep(self, blocks: Iterable[int]) -> None:
        kept = sorted(blocks)
        self._refuse_shared_parameters()
        earlier = self.alone.prepare_for_stage(kept[0])
        later = [m for block in self.stretches[kept[-1] + 1 :] for m in block.tops]
        for module in (*earlier, *later):
            module.to("cpu")

    def name_of(self, module: nn.Module, key: str = "") -> str:
        """The network's name for a module, or for the tensor `key` of the module."""
        name = self._names.get(module, "")
        return f"{name}.{key}" if name and key else name or key

    def example_here(self) -> Inputs:
        """The example on the network's device; in the type of its weights, too, if they had the
        same type when the network was cut."""
        weight = next(self.model.parameters(), None)
        if weight is None or weight.device.type == "meta":
            return self.example
        example = moved(self.example, weight.device)
        return converted(example, weight.dtype) if self._example_follows else example

    def modules_to_intercept(self, first: int) -> tuple[nn.Module, ...]:
        """The modules whose calls a forward that begins with block `first` intercepts."""
        if first not in self._to_intercept:
            modules = dict.fromkeys(b.module for b in self.boundaries if b.number >= first)
            passed_over = self.alone.passed_over(first) if first else ()
            self._to_intercept[first] = tuple(modules | dict.fromkeys(passed_over))
        # A module may have been compiled since the last call.
        compiled = [m for m in self.enclosing if intercept.is_compiled(m)]
        return (*self._to_intercept[first], *compiled) if compiled else self._to_intercept[first]

    def check_boundaries(self) -> None:
        """Check that the modules at which blocks begin are still the network's.

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

    def _refuse_shared_parameters(self) -> None:
        for name, blocks in self.shared.items():
            raise InputError(
                f"stages: parameter {name!r} of {type(self.model).__name__} is used by blocks "
                f"{', '.join(repr(self.names[k]) for k in blocks)}, and a stage has the parameters "
                "of its own blocks alone; untie it (tie_word_embeddings=False in transformers), or "
                "train in one process"
            )


def _is_watched(module: nn.Module) -> bool:
    """Whether a call of a module does more than run its forward as its class has it."""
    hooks = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
    return bool(hooks) or "forward" in module.__dict__ or intercept.is_compiled(module)


def _enclosing(boundaries: Iterable[Boundary], calls: Iterable[Call]) -> frozenset[nn.Module]:
    """The modules within whose calls a block begins."""
    events = [b.event for b in boundaries]
    return frozenset(c.module for c in calls if any(c.begins < e < c.ends for e in events))
