"""Zeros instead of a module's output, for modules that a forward passes over.

A block by itself (`alone.py`) passes over the modules of earlier blocks; an exported part of a
network (`up_to.py`) passes over those of later blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from layerwise.blocks import intercept
from layerwise.blocks.coroutine import Coroutine
from layerwise.blocks.unchanged import unchanged
from layerwise.errors import InputError, reason
from layerwise.inputs import Inputs, call

ModuleCall = tuple[nn.Module, int]  # a module, and which of its calls in one forward, from 0


@dataclass(frozen=True)
class _Shape:
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Placeholder:
    """A structure that a module returned, without the values of its tensors."""

    def __init__(self, value: Any):
        leaves, self._spec = pytree.tree_flatten(value)
        self._leaves = [
            _Shape(tuple(t.shape), t.dtype, t.device) if isinstance(t, Tensor) else t
            for t in leaves
        ]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placeholder):
            return NotImplemented
        return self._spec == other._spec and self._leaves == other._leaves

    def between(self, three: Placeholder, rows: int) -> Placeholder | None:
        """What the module returns for `rows` samples, if this is for two and `three` for three, and
        every axis grows equally with each sample; None if the two differ otherwise."""
        if self._spec != three._spec:
            return None
        found = copy.copy(self)
        found._leaves = []
        for two, more in zip(self._leaves, three._leaves, strict=True):
            if not isinstance(two, _Shape) or not isinstance(more, _Shape):
                if isinstance(two, _Shape) or isinstance(more, _Shape) or two != more:
                    return None
                found._leaves.append(two)
                continue
            if len(two.shape) != len(more.shape):
                return None
            sizes = zip(two.shape, more.shape, strict=True)
            shape = tuple(a + (rows - 2) * (b - a) for a, b in sizes)
            if any(n < 0 for n in shape):
                return None
            found._leaves.append(_Shape(shape, two.dtype, two.device))
        return found

    def zeros(self, rows: int | None = None, recorded_rows: int | None = None) -> Any:
        """The structure with zeros in its tensors.

        Args:
            rows: the number of samples; None for the recorded number.
            recorded_rows: the recorded number of samples. Tensors whose first axis has this length
                get `rows` instead.
        """

        def make(leaf: Any) -> Any:
            if not isinstance(leaf, _Shape):
                return leaf
            shape = list(leaf.shape)
            if rows is not None and shape[:1] == [recorded_rows]:
                shape[0] = rows
            return torch.zeros(shape, dtype=leaf.dtype, device=leaf.device)

        return pytree.tree_unflatten([make(leaf) for leaf in self._leaves], self._spec)


def for_rows(
    two: Mapping[ModuleCall, Placeholder], three: Mapping[ModuleCall, Placeholder], rows: int
) -> dict[ModuleCall, Placeholder] | None:
    """The placeholders for `rows` samples, from those for two and three; None if they do not tell.

    (`Placeholder.between`)
    """
    if two.keys() != three.keys():
        return None
    found = {call: placeholder.between(three[call], rows) for call, placeholder in two.items()}
    return None if None in found.values() else found  # type: ignore[return-value]


def record_placeholders(
    model: nn.Module, inputs: Inputs, modules: Set[nn.Module]
) -> dict[ModuleCall, Placeholder]:
    """The output of each call of `modules` in a forward of `model` on `inputs` in eval mode.

    The model is left unchanged.
    """
    found: dict[ModuleCall, Placeholder] = {}
    counts: dict[nn.Module, int] = {}

    def handle(hook: intercept.Intercepted, args: Any, kwargs: Any) -> Any:
        module = hook.module
        n = counts[module] = counts.get(module, -1) + 1
        result = hook.call(*args, **kwargs)
        if module in modules:  # others may be intercepted for another forward that is paused
            found[module, n] = Placeholder(result)
        return result

    with unchanged(model), intercept.intercepted(modules), torch.no_grad():
        model.eval()
        run_watched(model, inputs, handle)
    return found


def run_watched(model: nn.Module, inputs: Inputs, handle: Callable[..., Any]) -> Any:
    """The model's output, with `handle` called instead of each intercepted module."""
    forward = intercept.uncompiled(model)
    return Coroutine.idle(handle).begin(lambda: call(forward, inputs))


def zeros_by_shape(module: nn.Module, args: Any, kwargs: Any, device: torch.device) -> Any:
    """Zeros, on `device`, in the shapes that a module with weights on the meta device returns.

    Raises:
        InputError: the module's output depends on the values of its arguments.
    """
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    try:
        with torch.no_grad():
            result = module(*args, **kwargs)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__}: its weights are in another process, and what it returns "
            f"depends on more than shapes ({reason(error)}); train in one process"
        ) from error
    return pytree.tree_map_only(
        Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype, device=device), result
    )
