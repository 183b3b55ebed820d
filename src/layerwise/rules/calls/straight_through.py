"""Nonlinearities whose derivative counts as 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from layerwise.rules.calls.attention import ValueOf

_NAMES = (
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu", "gelu"),
    *("silu", "mish", "softplus", "hardtanh", "hardtanh_", "hardswish", "hardsigmoid", "sigmoid"),
    *("tanh", "sigmoid_", "tanh_"),
)
POINTWISE = frozenset(
    getattr(place, name)
    for place in (torch, torch.Tensor, F)
    for name in _NAMES
    if hasattr(place, name)
)


class StraightThrough(TorchFunctionMode):
    """A context in which the derivative of every pointwise nonlinearity counts as 1.

    Its value stays the same. The nonlinearity must be called by PyTorch's name for it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in POINTWISE or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        x = args[0] if args else kwargs.pop("input")
        with torch.no_grad():
            y = func(x.detach(), *args[1:], **kwargs)
        return ValueOf.apply(y, x)
