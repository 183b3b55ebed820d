"""Any network into an ordered chain of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, fx, nn

from layerwise.blocks.build import build
from layerwise.blocks.chain import Blocks
from layerwise.blocks.cost import piece_costs
from layerwise.blocks.flow import Flow
from layerwise.blocks.partition import partition
from layerwise.blocks.trace import reason, trace
from layerwise.blocks.unchanged import unchanged
from layerwise.errors import InputError, choices

Balance = Literal["flops", "memory"]


def cut(
    model: nn.Module,
    blocks: int | Literal["all"] | None = None,
    *,
    at: Sequence[str] | None = None,
    example: Tensor | None = None,
    balance: Balance = "flops",
) -> Blocks:
    """Divide `model` into an ordered chain of blocks that share its parameters.

    A cut lies where exactly one tensor crosses, so a residual connection stays whole. In eval mode
    the chain's output equals the model's, bit for bit, for any batch size; the model itself is
    left unchanged and goes on working.

        cut(model, blocks=4, example=images)              # four blocks of about equal cost
        cut(model, blocks="all", example=images)          # every layer its own block
        cut(model, at=["layer2", "layer3"], example=images)

    A block calls the model's own modules. Only a module that a cut divides is replaced by the
    operations of its forward, as `torch.fx` traces them in eval mode: its hooks no longer run, a
    constant that depends on train or eval mode (`F.dropout(x, training=self.training)`) follows the
    mode, and auxiliary classifiers that are there in train mode only (GoogLeNet, Inception) are
    left out.

    Args:
        model: any module that maps one tensor, (B, ...), to one tensor.
        blocks: how many, or "all" for one per cut point; 4 unless `at` is given. Layers that cost
            nothing (normalisation, activation, pooling) stay with the layer that feeds them.
        at: names of modules (as in `model.named_modules()`); each begins a new block, in the order
            in which the model runs them. `cut(model, at=chain.names[1:], ...)` gives `chain` again
            wherever its names are the model's.
        example: a batch, (B, ...), on the model's device; at most two samples of it are used.
        balance: what the blocks share equally: "flops" of the forward pass, or "memory", the bytes
            of activations that training keeps for the backward pass. The largest block is as small
            as it can be.

    Returns:
        The chain, with the shape of every block's output; a block is called by the first of the
        model's modules in it.

    Raises:
        InputError: no such module; more than one tensor crosses at a name; fewer cut points than
            blocks; one parameter in two blocks; a model that cannot be followed, or cannot take the
            example.
    """
    call = _check_arguments(model, blocks, at, example, balance)
    assert example is not None
    x = torch.cat([example[:2], example[:1]])[:2]
    training = model.training
    with unchanged(model):
        model.eval()
        expected = _run(model, x)
        flow, untraced = _follow(model, x)
        if at is not None:
            starts = _starts_at(flow, at, untraced)
        else:
            starts = _starts_balanced(flow, 4 if blocks is None else blocks, balance, call)
        parts = build(flow, starts, handwritten=False)
        chain = Blocks(parts, example=x, names=_names(flow, starts))
        _compare(chain, x, expected)
    own = set(model.modules())
    for module in chain.modules():
        if module not in own:
            module.training = training
    return chain


def _check_arguments(
    model: nn.Module,
    blocks: int | str | None,
    at: Sequence[str] | None,
    example: Tensor | None,
    balance: str,
) -> str:
    if not isinstance(model, nn.Module):
        raise InputError(f"cut(model): got {type(model).__name__}; give an nn.Module")
    if at is not None and blocks is not None:
        raise InputError(
            f"cut(blocks={blocks!r}, at={list(at)!r}): got both; give `blocks` to balance the cost, "
            "or `at` to name the modules that begin a block"
        )
    if isinstance(at, str):
        raise InputError(f"cut(at={at!r}): got a string; give a list of names: at=[{at!r}]")
    if at is None and blocks is not None and blocks != "all":
        if not isinstance(blocks, int) or isinstance(blocks, bool) or blocks < 1:
            raise InputError(
                f'cut(blocks={blocks!r}): give a number of blocks, at least 1, or "all"'
            )
    if balance not in ("flops", "memory"):
        raise InputError(
            f"cut(balance={balance!r}): {choices(str(balance), ('flops', 'memory'))}"
        )
    if not isinstance(example, Tensor) or example.dim() == 0 or len(example) == 0:
        got = "none" if example is None else type(example).__name__
        if isinstance(example, Tensor):
            got = f"shape {tuple(example.shape)}"
        raise InputError(
            f"cut(example=): got {got}; give a batch that the model takes, a tensor (B, ...) with at "
            "least one sample: cut(model, blocks=4, example=images)"
        )
    return f"cut(blocks={blocks!r})"


def _run(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            output = model(x)
    except Exception as error:
        raise InputError(
            f"cut(example=): {type(model).__name__} cannot take an input of shape "
            f"{tuple(x.shape)} and type {x.dtype}: {reason(error)}"
        ) from error
    if not isinstance(output, Tensor):
        raise InputError(
            f"cut(model): {type(model).__name__} returns {type(output).__name__}; a chain maps one "
            "tensor to one tensor: wrap the model in a module that returns one"
        )
    return output


def _follow(model: nn.Module, x: Tensor) -> tuple[Flow, dict[str, str]]:
    try:
        graph, untraced = trace(model)
    except Exception as error:
        raise InputError(
            f"cut(model): cannot follow the forward of {type(model).__name__}: {reason(error)}; "
            "divide the model by hand: Blocks([...])"
        ) from error
    return Flow(model, graph, x), untraced


def _starts_at(flow: Flow, at: Sequence[str], untraced: dict[str, str]) -> list[int]:
    known = {name for name, _ in flow.model.named_modules() if name}
    begins: dict[int, str] = {}
    for name in at:
        call = f"cut(at=[..., {name!r}])" if len(at) > 1 else f"cut(at=[{name!r}])"
        if name not in known:
            raise InputError(f"{call}: the model has no module {name!r}; {choices(name, known)}")
        i = _first(flow, name)
        if i is None:
            for outer, why in untraced.items():
                if name.startswith(f"{outer}."):
                    raise InputError(
                        f"{call}: {name!r} lies inside {outer!r}, whose forward cannot be followed "
                        f"({why}); name {outer!r} or a module outside it"
                    )
            raise InputError(
                f"{call}: the model does not call {name!r} in eval mode, or lets no data through "
                "it; name a module that it calls"
            )
        if begins.setdefault(i, name) != name or list(at).count(name) > 1:
            raise InputError(
                f"{call}: {begins[i]!r} and {name!r} begin at the same place; name one of them"
            )
    for i, name in begins.items():
        if i > 1:
            _refuse_no_cut(flow, i, name)
    return sorted({0, *begins} - {1})


def _first(flow: Flow, name: str) -> int | None:
    """Where the module `name`, or the first module inside it, first computes data."""
    for i, node in enumerate(flow.data):
        if any(path == name or path.startswith(f"{name}.") for path, _ in node.meta["calls"]):
            return i
    return None


def _refuse_no_cut(flow: Flow, i: int, name: str) -> None:
    call = f"cut(at=[{name!r}])"
    crossing = flow.crossing(i)
    near = f"cut at {_nearest(flow, i)}"
    if len(crossing) > 1:
        origins = ", ".join(_origin(node) for node in crossing)
        raise InputError(
            f"{call}: {len(crossing)} tensors cross before {name!r} (from {origins}); exactly one "
            f"may: {near}"
        )
    if not flow.can_cut(i):
        lost = flow.lost_sizes(i)
        what = f"the size {lost[0].name!r} that was read before it" if lost else "what is no tensor"
        raise InputError(f"{call}: from {name!r} on the model needs {what}: {near}")
    parameter = flow.shared_parameter(i)
    if parameter is not None:
        raise InputError(
            f"{call}: parameter {parameter!r} is used both before and after {name!r}; a parameter "
            "belongs to one block: untie it, or keep both uses in one block"
        )


def _nearest(flow: Flow, i: int) -> str:
    points = flow.cut_points
    before = [p for p in points if p < i][-1:]
    after = [p for p in points if p > i][:1]
    names = [repr(_name(flow, p, len(flow.data))) for p in before + after]
    return " or ".join(names) if names else "no place; the model is one block"


def _origin(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "the model's input"
    calls = node.meta["calls"]
    if node.op == "call_module":
        return repr(calls[-1][0])
    return f"{node.name!r} in {calls[-1][0]!r}" if calls else f"{node.name!r} in the model's forward"


def _starts_balanced(
    flow: Flow, blocks: int | Literal["all"], balance: Balance, call: str
) -> list[int]:
    starts = [0, *flow.cut_points]
    costs = piece_costs(flow, starts, "flops")
    starts = _without_idle(starts, costs)
    shared = {i: flow.shared_parameter(i) for i in starts[1:]}
    starts = [i for i in starts if shared.get(i) is None]
    tied = next((name for name in shared.values() if name is not None), None)
    wanted = 2 if blocks == "all" and tied else 1 if blocks == "all" else blocks
    if wanted > len(starts):
        why = f" where no parameter is shared ({tied!r} is: untie it)" if tied else ""
        raise InputError(
            f"{call}: {type(flow.model).__name__} divides into at most {len(starts)} block"
            f"{'s' * (len(starts) != 1)}{why}; give blocks={len(starts)} or fewer"
        )
    if blocks == "all":
        return starts
    if blocks == 1:
        return [0]
    costs = piece_costs(flow, starts, balance)
    return [starts[i] for i in partition(costs, blocks)]


def _without_idle(starts: list[int], costs: list[int]) -> list[int]:
    """Give every piece that costs nothing to the one before it, and such a beginning to the next."""
    kept = [0]
    busy = costs[0] > 0
    for i, cost in zip(starts[1:], costs[1:], strict=True):
        if cost > 0:
            if busy:
                kept.append(i)
            busy = True
    return kept


def _names(flow: Flow, starts: list[int]) -> list[str]:
    ends = [*starts[1:], len(flow.data)]
    if len(starts) == 1:
        return [type(flow.model).__name__]
    return [_name(flow, max(i, 1), end) for i, end in zip(starts, ends, strict=True)]


def _name(flow: Flow, i: int, end: int) -> str:
    """The largest module that begins at `data[i]` and ends before `data[end]`, or the operation."""
    calls = flow.data[i].meta["calls"]
    for depth in range(1, len(calls) + 1):
        within = [
            j for j, node in enumerate(flow.data) if node.meta["calls"][:depth] == calls[:depth]
        ]
        if within[0] == i and within[-1] < end:
            return calls[depth - 1][0]
    return ".".join([*(path for path, _ in calls[-1:]), flow.data[i].name])


def _compare(chain: Blocks, x: Tensor, expected: Tensor) -> None:
    """A forward may depend on what a trace does not see; then the chain would be another network."""
    actual = _run(chain.eval(), x)
    if actual.shape != expected.shape or not torch.allclose(
        actual, expected, rtol=1e-3, atol=1e-5, equal_nan=True
    ):
        raise InputError(
            "cut(model): the chain's output is not the model's; its forward depends on something "
            "that a trace does not see; divide the model by hand: Blocks([...])"
        )
