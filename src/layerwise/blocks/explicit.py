"""Where to cut when it is said by name, and what a block is called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise, takewhile

from torch import fx

from layerwise.blocks.flow import Flow
from layerwise.errors import InputError, choices


def named(flow: Flow, at: Sequence[str], untraced: dict[str, str]) -> list[int]:
    """Where in `flow.data` each part begins: the first at 0, the others at the modules in `at`.

    Raises:
        InputError: no such module; not exactly one tensor crosses there.
    """
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
    return sorted({0, *(flow.with_flatten(i, _operations_before(flow, i)) for i in begins)} - {1})


def _operations_before(flow: Flow, i: int) -> Iterable[int]:
    """The cut points between `data[i]` and the module before it, the nearest first."""
    points = set(flow.cut_points)
    return takewhile(
        lambda j: j in points and flow.data[j].op != "call_module", range(i - 1, 1, -1)
    )


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
    """The modules on either side of `data[i]` that a block can begin with."""
    points = [(p, _module_at(flow, p, len(flow.data))) for p in flow.cut_points]
    before = [name for p, name in points if name and p < i][-1:]
    after = [name for p, name in points if name and p > i][:1]
    return " or ".join(map(repr, before + after)) or "no place; the model is one block"


def _origin(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "the model's input"
    calls = node.meta["calls"]
    if node.op == "call_module":
        return repr(calls[-1][0])
    return (
        f"{node.name!r} in {calls[-1][0]!r}" if calls else f"{node.name!r} in the model's forward"
    )


def names_of(flow: Flow, starts: list[int]) -> list[str]:
    """What the parts are called: by the largest module that begins a part (but for a flatten) and
    lies within it, or else by the operation."""
    if len(starts) == 1:
        return [type(flow.model).__name__]
    names = []
    ends = [*starts[1:], len(flow.data)]
    # A network may begin with operations of its own; none can be named to cut before it anyway.
    begins = (i for i in range(1, ends[0]) if _module_at(flow, i, ends[0]))
    for i, end in pairwise([next(begins, 1), *ends]):
        node = flow.data[i]
        inside = [path for path, _ in node.meta["calls"] if node.op != "call_module"]
        free = range(i, next((j for j in range(i, end) if flow.flops(j, j + 1)), end - 1) + 1)
        modules = (module for j in free if (module := _module_at(flow, j, end)))
        names.append(next(modules, ".".join([*inside[-1:], node.name])))
    return names


def _module_at(flow: Flow, i: int, end: int) -> str | None:
    """The largest module that is first called at `data[i]` and done before `data[end]`."""
    calls = flow.data[i].meta["calls"]
    for depth in range(1, len(calls) + 1):
        path = calls[depth - 1][0]
        within = [
            j for j, node in enumerate(flow.data) if node.meta["calls"][:depth] == calls[:depth]
        ]
        if within[-1] < end and _first(flow, path) == i:
            return path
    return None
