"""A model's forward as a graph, down to the smallest module whose forward can be followed."""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from layerwise.errors import reason

# One call of a module: its path in the model, and which call of it this is within its caller.
Call = tuple[str, int]

# What torch.fx calls the tensors that a forward holds as literals.
CONSTANT = "_tensor_constant"


class Tracer(fx.Tracer):
    """torch.fx's tracer for a forward of one input, whose other arguments keep their defaults.

    A module whose forward cannot be followed (control flow on values, an argument that is no
    tensor) stays whole, and so does one that does nothing in eval mode (it may in train mode);
    everything around it is still traced. An assertion is taken to hold. Every node knows the module
    calls that it lies in, `node.meta["calls"]`, outermost first, and has a `node.meta["key"]` which
    is the same in another trace of the model that opens at least the same calls around it.

    Args:
        whole: whether to leave a call of a module whole; `calls` ends with that call.
    """

    # A value computed from a buffer is part of the graph, not a constant of this trace.
    proxy_buffer_attributes = True

    def __init__(self, whole: Callable[[tuple[Call, ...]], bool] = lambda calls: False):
        super().__init__()
        self.whole = whole
        self.untraced: dict[str, str] = {}  # path of a module left whole -> why
        self._calls: tuple[Call, ...] = ()
        self._seen: Counter[tuple[Any, ...]] = Counter()

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        # A parameter's shape is a constant; torch.fx knows no such thing for buffers.
        self.param_shapes_constant = isinstance(attr_val, nn.Parameter)
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        # Called by Proxy.__bool__, and that by the line that wants to know.
        frame = sys._getframe(2)
        if (
            linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            .lstrip()
            .startswith("assert")
        ):
            return True
        return super().to_bool(obj)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        where = (self._calls, kind, target)
        node.meta["calls"] = self._calls
        node.meta["key"] = (*where, self._seen[where])
        self._seen[where] += 1
        return node

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        path, caller = self.path_of_module(m), self._calls
        self._calls = (*caller, (path, self._seen[caller, path]))
        self._seen[caller, path] += 1
        try:
            layers = _layers(m, args, kwargs)
            if (layers or not self.is_leaf_module(m, path)) and not self.whole(self._calls):
                last = next(reversed(self.graph.nodes))
                try:
                    result = (layers or forward)(*args, **kwargs)
                    if next(reversed(self.graph.nodes)) is not last:
                        return result
                except Exception as error:  # whatever it is: this forward cannot be followed
                    self.untraced.setdefault(path, reason(error))
                    _forget(self.graph, after=last)
            return self.create_proxy("call_module", path, args, kwargs)
        finally:
            self._calls = caller


def trace(
    model: nn.Module, whole: Callable[[tuple[Call, ...]], bool] = lambda calls: False
) -> tuple[fx.Graph, dict[str, str]]:
    """The graph of `model` in the mode it is in, without what its output does not need.

    Returns:
        The graph, and for every module that had to stay whole the reason why.
    """
    tracer = Tracer(whole)
    graph = tracer.trace(model)
    remove_unused(graph)
    return graph, tracer.untraced


def remove_unused(graph: fx.Graph) -> None:
    """Erase what the output does not need; what works in place stays. Assertions go."""
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output") or _acts(node):
            continue
        graph.erase_node(node)


def _acts(node: fx.Node) -> bool:
    """Whether the node is there for what it does, not for what it returns."""
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return name.endswith("_") or bool(node.kwargs.get("inplace"))
    return node.op == "call_method" and _in_place(str(node.target))


def _in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _layers(
    m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[fx.Proxy], Any] | None:
    """`nn.TransformerEncoder` without a mask is its layers in a row; its own forward says so in a
    way that cannot be followed."""
    if type(m) is not nn.TransformerEncoder or len(args) != 1 or kwargs:
        return None

    def forward(x: fx.Proxy) -> Any:
        for layer in m.layers:
            x = layer(x)
        return m.norm(x) if m.norm is not None else x

    return forward


def _forget(graph: fx.Graph, after: fx.Node) -> None:
    for node in reversed(list(graph.nodes)):
        if node is after:
            return
        # The tracer hands out one node for each parameter, which a later use may need again.
        if node.op != "get_attr":
            graph.erase_node(node)
