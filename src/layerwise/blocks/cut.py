"""Any network into an ordered chain of blocks."""

from __future__ import annotations

import bisect
import contextlib
import math
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from layerwise.blocks.balance import Balance
from layerwise.blocks.chain import Blocks, repeated
from layerwise.blocks.cost import saved
from layerwise.blocks.points import Points, as_chain, changed, outermost
from layerwise.blocks.stretches import Boundary, Place, Stretches
from layerwise.blocks.sweep import Call, Crossing, Cut, Graph, Moment, Sweep, candidates, sweep
from layerwise.blocks.unchanged import seed, unchanged
from layerwise.errors import InputError, choices, reason
from layerwise.inputs import Inputs, Take, call, describe, detached, leading, scores


def cut(
    model: nn.Module,
    blocks: int | Literal["all"] | None = None,
    *,
    at: Sequence[str] | None = None,
    example: Inputs = None,
    balance: Balance = "flops",
    output: Take = None,
) -> Blocks:
    """Divide a network into an ordered chain of blocks.

        cut(model, blocks=4, example=images)              # four blocks of about equal cost
        cut(model, blocks="all", example=images)          # every layer its own block
        cut(model, at=["layer2", "layer3"], example=images)
        cut(model, blocks=4, example={"input_ids": tokens, "attention_mask": mask})

    A block is a stretch of the network's own forward. Nothing is traced, copied or replaced: the
    forward runs as it is written, and is paused where a block ends. Modes, attributes, hooks,
    random numbers, buffers and further inputs are the network's, also where they change later.

    A cut lies where one tensor with a gradient crosses, so a residual connection stays whole.
    Tensors without a gradient (masks, positions) and tables that depend on parameters alone may
    cross as well. A parameter that several blocks use (tied embeddings, repeated layers) belongs to
    the last of them. The network is run on the example once in eval mode, which finds the cut
    points, and once in train mode, which sees that nothing else crosses there; it is left
    unchanged.

    Args:
        model: the network.
        blocks: how many, or "all" for one per layer; 4 unless `at` is given. A block begins with a
            layer that costs something and has parameters; what costs nothing (normalisation,
            activation, pooling) stays with the layer before it, and a flatten goes with the layer
            that reads the vector.
        at: names of modules (as in `model.named_modules()`); each begins a new block, in the order
            in which the model runs them. `cut(model, at=chain.names[1:], ...)` gives `chain` again.
        example: what the network is called with, on the network's device: a tensor (B, ...), a
            tuple of arguments, or a dict of named ones. Of one tensor, two samples are used where
            the network takes so few.
        balance: what the blocks share equally: "flops" of the forward pass, or "memory", the bytes
            of activations that training keeps for the backward pass. The largest block is as small
            as it can be.
        output: which part of what the network returns are the class scores: a key, an index or a
            function. By default the tensor that it returns; `logits`, `out` or
            `last_hidden_state`; the first of a tuple.

    Returns:
        The chain, with the shape of every block's output; a block is called by the first of the
        network's modules in it.

    Raises:
        InputError: no such module; more than one tensor crosses at a name; fewer cut points than
            blocks; a network that cannot be paused (compiled as a whole, scripted, wrapped for
            several devices) or cannot take the example.
    """
    _check_arguments(model, blocks, at, example, balance)
    with torch.inference_mode(False), unchanged(model), _trained(model):
        x, found = _run(model, example, output)
        graph = Graph(_scores(found, output), found.tainted)
        everywhere = candidates(found, graph)
        numbers = {_key(point): i for i, point in enumerate(everywhere)}
        points, trained, readings = _checked(model, x, everywhere, output)

        def more() -> dict[Cut, tuple[int, ...]]:
            wider = repeated(x, len(leading(x)) + 1, leading(x).device)
            with contextlib.suppress(Exception):
                moments = sweep(model, lambda: call(model, wider), wider).moments
                return {_key(moment): moment.shape for moment in moments}
            return {}

        known = Points(model, found, graph, points, len(leading(x)), readings, more)
        starts: list[Moment] = []
        if at is not None:
            starts = known.named(at)
        elif blocks != 1:
            starts = known.balanced(4 if blocks is None else blocks, balance)
        if starts and trained.reentrant:
            raise InputError(
                f"cut(model): {type(model).__name__} has an activation checkpoint with "
                "use_reentrant=True, which gives no gradient where its input wants none, as a "
                "block's does; give it use_reentrant=False (in transformers: model."
                "gradient_checkpointing_enable({'use_reentrant': False}))"
            )
        return _chain(known, starts, trained, numbers, x, output)


def _check_arguments(
    model: nn.Module,
    blocks: int | str | None,
    at: Sequence[str] | None,
    example: Inputs,
    balance: str,
) -> None:
    _check_model(model)
    if at is not None and blocks is not None:
        raise InputError(
            f"cut(blocks={blocks!r}, at={list(at)!r}): got both; give `blocks` to balance "
            "cost, or `at` to name the modules that begin a block"
        )
    if isinstance(at, str):
        raise InputError(f"cut(at={at!r}): got a string; give a list of names: at=[{at!r}]")
    number = isinstance(blocks, int) and not isinstance(blocks, bool) and blocks >= 1
    if blocks is not None and blocks != "all" and not number:
        raise InputError(f'cut(blocks={blocks!r}): give a number of blocks, at least 1, or "all"')
    if balance not in ("flops", "memory"):
        raise InputError(f"cut(balance={balance!r}): {choices(str(balance), ('flops', 'memory'))}")
    first = None if example is None else leading(example)
    if first is None or first.dim() == 0 or len(first) == 0:
        raise InputError(
            f"cut(example=): got {'none' if first is None else describe(first)}; give a batch that "
            "the model takes, with at least one sample: a tensor (B, ...), a tuple of arguments or "
            "a dict of named ones, such as cut(model, blocks=4, example=images)"
        )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"cut(model): got {type(model).__name__}; give an nn.Module")
    name = type(model).__name__
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise InputError(
            f"cut(model): got {name}, which synchronises gradients in its own backward pass; cut "
            "the network inside, model.module, and train it in several processes with "
            "layerwise.runtime.DataParallel"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"cut(model): got {name}, which TorchScript runs without Python; give the network that "
            "it was made of"
        )
    if hasattr(model, "_orig_mod"):
        raise InputError(
            f"cut(model): got {name}, which is compiled as a whole and cannot be paused; cut the "
            "network itself and compile its blocks: for block in blocks: block.compile()"
        )
    for key, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InputError(
                f"cut(model): parameter {key!r} of {name} has no shape yet; run the network on a "
                "batch first"
            )
        if parameter.is_meta:
            raise InputError(
                f"cut(model): parameter {key!r} of {name} is on the meta device; give it memory "
                "first: model.to_empty(device=...), and initialise it"
            )


@contextlib.contextmanager
def _trained(model: nn.Module) -> Iterator[None]:
    """Within, every parameter requires grad, frozen or not."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_()
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _run(model: nn.Module, example: Inputs, output: Take) -> tuple[Inputs, Sweep]:
    """The part of the example that is used, and the network's run on it in eval mode."""
    model.eval()
    whole = detached(example)
    tries = [whole]
    if isinstance(whole, Tensor):
        two = torch.cat([whole[:2], whole[:1]])[:2]
        tries = [two] if len(whole) <= 2 else [two, whole]
    error: Exception | None = None
    for x in tries:
        seed(leading(x).device)
        try:
            return x, sweep(model, lambda x=x: call(model, x), x)
        except InputError:
            raise
        except Exception as raised:
            error = error or raised
    raise InputError(
        f"cut(example=): {type(model).__name__} cannot take {describe(example)}: {reason(error)}"  # type: ignore[arg-type]
    ) from error


def _scores(found: Sweep, output: Take) -> Tensor:
    result = scores(found.result, output)
    if result.grad_fn is None:
        raise InputError(
            "cut(model): no gradient reaches the network's output; it has no parameters, or "
            "computes without gradients"
        )
    return result


def _checked(
    model: nn.Module, x: Inputs, points: list[Moment], output: Take
) -> tuple[list[Moment], Sweep, list[int]]:
    """See in train mode that nothing crosses besides the one tensor.

    Returns:
        The points of which that is so; the run, cut at all points; bytes kept for the backward pass
        before each of those returned, and at the end.
    """
    cuts = {_key(point): i for i, point in enumerate(points)}
    in_place = {i for i, point in enumerate(points) if changed(point)}

    def run_in(training: bool, in_place: Container[int] = in_place) -> tuple[Sweep, set[int], int]:
        model.train(training)
        seed(leading(x).device)
        with saved(model) as kept:
            run = sweep(
                model, lambda: call(model, x), x, cuts, lambda: kept.bytes, in_place=in_place
            )
            return run, run.broken(scores(run.result, output)), kept.bytes

    try:
        run, broken, total = run_in(training=True)
    except Exception:
        try:  # another tensor may be changed in place in train mode alone
            run, broken, total = run_in(True, in_place=range(len(points)))
        except Exception:  # a batch of two may be too small to train on
            run, broken, total = run_in(training=False)
    for i, crossing in run.crossings.items():
        points[i].changes = crossing.given is not crossing.leaf and crossing.given._version > 0
    model.eval()
    readings, reading = [], 0
    for i in range(len(points)):
        reading = run.crossings[i].reading if i in run.crossings else reading
        readings.append(reading)
    sound = [i for i in range(len(points)) if i not in broken]
    return [points[i] for i in sound], run, [*(readings[i] for i in sound), total]


def _key(point: Moment) -> Cut:
    return point.module, point.n, point.entry, point.path


def _place(order: int, entry: bool) -> float:
    """Just before a call begins, or just after it ends."""
    return order - 0.5 if entry else order + 0.5


class _Division:
    """A run of the network, divided into blocks.

    Args:
        calls: of the run.
        orders: the places at which all blocks but the first begin.
        gave: the tensor that came to each of these places.
        x: what the network was called with.
        result: what it gave.
        crossings: where the run was cut.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        orders: Sequence[float],
        gave: Sequence[Tensor | None],
        x: Inputs,
        result: Tensor,
        crossings: Iterable[Crossing] = (),
    ):
        self.calls, self.places = calls, [-1.0, *orders, math.inf]
        self.ends = [x if isinstance(x, Tensor) else None, *gave, result]
        self.came = {id(c.given): c.gave for c in crossings}
        self.of_blocks = [outermost(calls, begins, ends) for begins, ends in pairwise(self.places)]

    def block_of(self, place: float) -> int:
        return bisect.bisect_right(self.places, place) - 1

    def blocks_of_modules(self) -> dict[nn.Module, set[int]]:
        """The blocks in which each module's calls lie, or that they span."""
        found: dict[nn.Module, set[int]] = defaultdict(set)
        for c in self.calls:
            found[c.module] |= set(range(self.block_of(c.begins), self.block_of(c.ends) + 1))
        return found

    def chain(self, k: int) -> list[nn.Module] | None:
        """Block k as modules called one after the other."""
        given, gave = self.ends[k], self.ends[k + 1]
        if given is None or gave is None:
            return None
        return as_chain(self.of_blocks[k], given, gave, self.came)


def _chain(
    known: Points,
    starts: list[Moment],
    trained: Sweep,
    numbers: dict[Cut, int],
    x: Inputs,
    output: Take,
) -> Stretches:
    model, found = known.model, known.found
    result = scores(found.result, output)
    division = _Division(
        found.calls,
        [_place(p.order, p.entry) for p in starts],
        [p.tensor for p in starts],
        x,
        result,
    )
    met = [trained.crossings.get(numbers[_key(p)]) for p in starts]
    in_training = _Division(
        trained.calls,
        [
            math.inf if c is None else _place(c.order, p.entry)
            for c, p in zip(met, starts, strict=True)
        ],
        [None if c is None else c.gave for c in met],
        x,
        scores(trained.result, output),
        trained.crossings.values(),
    )
    count = len(starts) + 1
    chains = [division.chain(k) for k in range(count)]
    chains = [c if c == in_training.chain(k) else None for k, c in enumerate(chains)]
    blocks_of = division.blocks_of_modules()
    tops = [
        list(dict.fromkeys(c.module for c in of_block if blocks_of[c.module] == {k}))
        for k, of_block in enumerate(division.of_blocks)
    ]
    names = {module: name for name, module in model.named_modules()}
    titles = [
        names[of_block[0].module] if of_block else f"{type(model).__name__}.{k}"
        for k, of_block in enumerate(division.of_blocks)
    ]
    axes = [known.axis(p) or 0 for p in starts]
    shapes = [
        tuple(n for i, n in enumerate(p.shape) if i != axis)
        for p, axis in zip(starts, axes, strict=True)
    ]
    return Stretches(
        model,
        [
            Boundary(k, p.module, p.n, p.entry, p.path, axis, p.order, p.closes)
            for k, (p, axis) in enumerate(zip(starts, axes, strict=True), 1)
        ],
        example=x,
        names=titles if starts else [type(model).__name__],
        shapes=[*shapes, tuple(result.shape[1:])],
        take=output,
        calls=found.calls,
        owners=_owners(known, starts, division, in_training, met),
        tops=tops,
        chains=chains,
        tables=[known.graph.tables_at(p.time) for p in starts],
        shared=_shared(known, starts),
    )


def _shared(known: Points, starts: Sequence[Moment]) -> dict[str, list[int]]:
    """The blocks that use a parameter, of those that several use."""
    times = [p.time for p in starts]
    found = {}
    for name, parameter in known.model.named_parameters():
        uses = known.graph.uses.get(parameter, ())
        blocks = sorted({bisect.bisect_right(times, use) for use in uses})
        if len(blocks) > 1:
            found[name] = blocks
    return found


def _owners(
    known: Points,
    starts: Sequence[Moment],
    division: _Division,
    in_training: _Division,
    met: Sequence[Crossing | None],
) -> dict[Place, int]:
    """The block that every parameter and buffer belongs to: the last that uses it. What no block
    uses belongs to the block of its module, or of the module around that, or to the last."""
    last = len(starts)
    times = [p.time for p in starts]
    called, called_in_training = division.blocks_of_modules(), in_training.blocks_of_modules()
    of_module: dict[nn.Module, int] = {}
    owners: dict[Place, int] = {}
    around = {"": last}
    for name, module in known.model.named_modules():
        blocks = called.get(module) or called_in_training.get(module)
        around[name] = max(blocks) if blocks else around[name.rpartition(".")[0]]
        of_module[module] = around[name]
    for module in known.model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                uses = known.graph.uses.get(parameter)
                owners[module, key] = (
                    bisect.bisect_right(times, uses[-1]) if uses else of_module[module]
                )
        for key, buffer in module._buffers.items():
            if buffer is not None:
                owners[module, key] = of_module[module]
    # A buffer of a module that is divided belongs to the block that changes it.
    readings = [{}, *(c.buffers for c in met if c is not None)]
    for k, (before, after) in enumerate(pairwise(readings)):
        for place, reading in after.items():
            if place in before and before[place] != reading:
                owners[place] = k
    return owners
