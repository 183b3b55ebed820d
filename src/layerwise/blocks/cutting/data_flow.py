"""Follows which tensors depend on the network's inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from layerwise.inputs import Inputs, tensors

Node = Any  # torch.autograd.graph.Node

_NO_TENSORS = (int, float, str, torch.Size, torch.dtype, torch.device, type(None))


class InputDependence(TorchFunctionMode):
    """Finds the autograd nodes whose value depends on `inputs`.

    That is also so where no gradient leads to the inputs: an embedding of tokens depends on them,
    an embedding of positions does not.

    Attributes:
        nodes: the nodes found so far.
    """

    def __init__(self, inputs: Inputs):
        super().__init__()
        self._kept = tensors(inputs)  # kept alive, so that no identity is used twice
        self._known = {id(tensor) for tensor in self._kept}  # without an autograd node
        self.nodes: set[Node] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        gave = tensors_in(result)
        in_place = not gave or gave[0] is (args[0] if args else None)
        if in_place and getattr(func, "__name__", "").endswith("_"):  # also `__setitem__`
            gave = tensors_in(args[:1])
        if gave and any(map(self._depends, tensors_in(args, kwargs))):
            for tensor in gave:
                self.mark(tensor)
        return result

    def mark(self, tensor: Tensor) -> None:
        """Note that a tensor depends on the inputs."""
        # A change in place through a view gives the whole tensor a new node.
        whole = tensor._base if tensor._is_view() else None
        if whole is not None and whole.grad_fn is not None:
            self.nodes.add(whole.grad_fn)
        if tensor.grad_fn is not None:
            self.nodes.add(tensor.grad_fn)
        elif id(tensor) not in self._known:
            self._known.add(id(tensor))
            self._kept.append(tensor)

    def _depends(self, tensor: Tensor) -> bool:
        if tensor.grad_fn is not None:
            return tensor.grad_fn in self.nodes
        return id(tensor) in self._known


def tensors_in(*values: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, _NO_TENSORS):
            continue
        elif isinstance(value, tuple | list):
            found += tensors_in(*value)
        elif isinstance(value, dict):
            found += tensors_in(*value.values())
    return found
