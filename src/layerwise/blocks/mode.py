"""Constants of a trace that depend on train or eval mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from layerwise.blocks.flow import attribute
from layerwise.blocks.trace import CONSTANT, Call, remove_unused, trace
from layerwise.errors import InputError, reason


class ByMode(nn.Module):
    """The value that a model's forward passes to a function in train mode, or in eval mode.

    `F.dropout(x, training=self.training)` in the forward of a module that a cut divides becomes
    `F.dropout(x, training=by_mode())`. The mode is that of a module called in the same block, so
    that both `model.eval()` and `blocks.eval()` reach it.
    """

    def __init__(self, train: Any, eval: Any):
        super().__init__()
        self.values = (eval, train)
        # In a tuple, so that it is not registered: it is a submodule of the block already.
        self.mode_of: tuple[nn.Module] = (self,)

    def forward(self) -> Any:
        return self.values[self.mode_of[0].training]

    def extra_repr(self) -> str:
        return f"train={self.values[1]!r}, eval={self.values[0]!r}"


def follow_mode(model: nn.Module, graph: fx.Graph, opened: set[tuple[Call, ...]]) -> None:
    """Make the constants in `graph` that differ in train mode follow the mode.

    Args:
        model: gets a submodule for each such constant.
        graph: `model` traced in eval mode.
        opened: the module calls that were traced into.

    Raises:
        InputError: the forward of a divided module does something else in train mode.
    """
    model.train()
    try:
        in_train, _ = trace(model, whole=lambda calls: calls not in opened)
    except Exception as error:
        raise InputError(
            f"cut(model): cannot follow the forward of {type(model).__name__} in train mode: "
            f"{reason(error)}; divide the model by hand: Blocks([...])"
        ) from error
    finally:
        model.eval()
    _keep_first_output(in_train)

    pairs = list(zip(graph.nodes, in_train.nodes, strict=False))
    for node, other in pairs:
        if not _same(model, node, other):
            raise _another_path(model, node)
    if len(graph.nodes) != len(in_train.nodes):
        raise _another_path(model, next(reversed(graph.nodes)))
    counterpart = {other: node for node, other in pairs}
    for node, other in pairs:
        node.args = _merged(model, node, node.args, other.args, counterpart)
        node.kwargs = _merged(model, node, node.kwargs, other.kwargs, counterpart)


def choose_modes(block: nn.Module, calls: list[nn.Module]) -> None:
    """Let every `ByMode` in `block` follow one of the modules that it calls.

    Rather not a BatchNorm or a dropout: those are what people freeze one by one.
    """
    plain = [m for m in calls if not isinstance(m, (_NormBase, _DropoutNd, ByMode))]
    others = [m for m in calls if not isinstance(m, ByMode)]
    for module in block.modules():
        if isinstance(module, ByMode):
            module.mode_of = ((plain or others or [module])[0],)


def _same(model: nn.Module, node: fx.Node, other: fx.Node) -> bool:
    if node.op == other.op == "get_attr" and str(node.target).startswith(CONSTANT):
        # A literal tensor in the code gets a new name in every trace.
        ours, theirs = attribute(model, str(node.target)), attribute(model, str(other.target))
        return ours.shape == theirs.shape and torch.equal(ours, theirs)
    return (node.op, node.target) == (other.op, other.target)


def _merged(
    model: nn.Module, node: fx.Node, value: Any, other: Any, counterpart: dict[fx.Node, fx.Node]
) -> Any:
    def merged(value: Any, other: Any) -> Any:
        if isinstance(value, fx.Node) and counterpart.get(other) is value:
            return value
        if isinstance(value, (tuple, list)) and type(value) is type(other):
            if len(value) == len(other):
                return type(value)(map(merged, value, other))
        elif isinstance(value, dict) and isinstance(other, dict) and value.keys() == other.keys():
            return {key: merged(value[key], other[key]) for key in value}
        if isinstance(value, fx.Node) or isinstance(other, fx.Node):
            raise _another_path(model, node)
        if type(value) is type(other) and value == other:
            return value
        name = f"by_mode_{sum(isinstance(m, ByMode) for m in model.children())}"
        model.add_module(name, ByMode(train=other, eval=value))
        with node.graph.inserting_before(node):
            return node.graph.call_module(name)

    return merged(value, other)


def _keep_first_output(graph: fx.Graph) -> None:
    """In train mode GoogLeNet and Inception return auxiliary predictions after the first."""
    output = next(reversed(graph.nodes))
    first = output.all_input_nodes[0]
    while isinstance(first.target, type):  # the named tuple's constructor
        first = first.all_input_nodes[0]
    output.args = (first,)
    remove_unused(graph)


def _another_path(model: nn.Module, node: fx.Node) -> InputError:
    calls = node.meta.get("calls") or ()
    calls = calls[:-1] if node.op == "call_module" else calls
    where = calls[-1][0] if calls else type(model).__name__
    return InputError(
        f"cut(model): the forward of {where!r} does something else in train mode than in eval "
        f"mode, at {node.name!r}, and a cut divides it; move what differs into a module of its "
        "own, or divide the model by hand: Blocks([...])"
    )
