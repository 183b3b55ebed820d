"""Blocks from a graph and the places to cut it."""

from __future__ import annotations

from bisect import bisect_right

from torch import fx, nn

from layerwise.blocks.flow import SHAPE_ONLY, Flow
from layerwise.blocks.mode import choose_modes, follow_mode
from layerwise.blocks.trace import CONSTANT, Call, trace


def build(fine: Flow, starts: list[int], *, written: bool) -> list[nn.Module]:
    """One module per part of `fine.data`.

    The model is traced a second time, into those modules only that a cut divides: a block calls
    all others as they are, with their own Python, mode and hooks.

    Args:
        fine: the finest trace.
        starts: where in `fine.data` each part begins; the first is 0.
        written: the graph was written by hand, so there is nothing to trace a second time.
    """
    model, part_of = fine.model, {}
    spans: dict[tuple[Call, ...], set[int]] = {}
    for i, node in enumerate(fine.data):
        part = bisect_right(starts, i) - 1
        part_of[node.meta["key"]] = part
        calls = node.meta["calls"]
        for depth in range(len(calls)):
            spans.setdefault(calls[: depth + 1], set()).add(part)
    opened = {calls for calls, parts in spans.items() if len(parts) > 1}

    if written:
        flow = fine
    else:
        graph, _ = trace(model, whole=lambda calls: calls not in opened)
        follow_mode(model, graph, opened)
        flow = Flow(model, graph, fine.x)
    parts: dict[fx.Node, int] = {}
    for node in reversed(flow.data):
        calls = node.meta["calls"]
        if calls in spans and calls not in opened:
            parts[node] = min(spans[calls])
        elif node.meta["key"] in part_of:
            parts[node] = part_of[node.meta["key"]]
        else:  # a module that gave no data when traced into: it goes with what uses it
            uses = [parts[user] for user in node.users if user in parts]
            parts[node] = min(uses, default=len(starts) - 1)
    return [_block(flow, parts, k, len(starts)) for k in range(len(starts))]


def _block(flow: Flow, parts: dict[fx.Node, int], k: int, count: int) -> nn.Module:
    here = [node for node in flow.data if parts[node] == k]
    last = flow.output if k == count - 1 else _crossing(flow, parts, k + 1)
    if k == 0:
        source, here = flow.data[0], here[1:]
    else:
        source = _crossing(flow, parts, k)
    chain = _as_sequential(flow, source, here, last)
    return chain if chain is not None else _as_graph(flow, source, here, last)


def _crossing(flow: Flow, parts: dict[fx.Node, int], k: int) -> fx.Node:
    """The one node that parts from `k` on need of those before."""
    (node,) = (
        node
        for node in flow.data
        if parts[node] < k
        and (node is flow.output or any(parts.get(user, -1) >= k for user in node.users))
    )
    return node


def _as_sequential(
    flow: Flow, source: fx.Node, here: list[fx.Node], last: fx.Node
) -> nn.Sequential | None:
    """The model's modules in a row, under their own names, where a block is just that."""
    chain, previous = nn.Sequential(), source
    modules = []
    for node in here:
        if node.op != "call_module" or node.args != (previous,) or node.kwargs:
            return None
        *parents, name = str(node.target).split(".")
        container = chain
        for parent in parents:
            if parent not in container._modules:
                container.add_module(parent, nn.Sequential())
            container = container._modules[parent]
            if not isinstance(container, nn.Sequential) or container in modules:
                return None
        if name in container._modules:
            return None
        modules.append(flow.model.get_submodule(str(node.target)))
        container.add_module(name, modules[-1])
        previous = node
    if previous is not last or _leaves(chain, modules) != modules:
        return None
    return chain


def _leaves(chain: nn.Module, modules: list[nn.Module]) -> list[nn.Module]:
    """`modules` in the order in which `chain` calls them."""
    leaves = []
    for child in chain._modules.values():
        assert child is not None
        leaves += [child] if child in modules else _leaves(child, modules)
    return leaves


def _as_graph(flow: Flow, source: fx.Node, here: list[fx.Node], last: fx.Node) -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    copies = {source: x}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            if available(node):
                copies[node] = graph.node_copy(node, copied)
            elif SHAPE_ONLY in node.meta:  # from the block's input instead
                copies[node] = graph.node_copy(
                    node, lambda n: x if n in flow.index and n not in copies else copied(n)
                )
            elif flow.is_batch_size(node):
                copies[node] = graph.call_method("size", (x, 0))
            else:
                copies[node] = graph.node_copy(node, copied)
        return copies[node]

    def available(node: fx.Node) -> bool:
        if node in copies or node in flow.index:
            return node in copies
        return all(map(available, node.all_input_nodes))

    for node in here:
        copies[node] = graph.node_copy(node, copied)
    graph.output(copies[last])
    block = fx.GraphModule(flow.model, graph, class_name="Block")
    for name in block._buffers:
        if name.startswith(CONSTANT):  # a literal in the model's code, no state of it
            block._non_persistent_buffers_set.add(name)
    calls = [flow.model.get_submodule(str(n.target)) for n in here if n.op == "call_module"]
    choose_modes(block, calls)
    return block
