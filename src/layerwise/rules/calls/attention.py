"""Attention with derivatives that PyTorch's fused kernels do not have."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Attention = Callable[..., Tensor]


class ValueOf(torch.autograd.Function):
    """The value of the first tensor, with the derivatives of the second; both of one shape."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, derivative: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, gradient


@contextlib.contextmanager
def replaced_attention(make: Callable[[Attention], Attention]) -> Iterator[None]:
    """A context in which `F.scaled_dot_product_attention` is what `make` makes of it."""
    found = F.scaled_dot_product_attention
    # The function is replaced under its name, because modules find it by name: a mode would not
    # see the call inside `F.multi_head_attention_forward`.
    F.scaled_dot_product_attention = make(found)  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = found


def attention_by_formula(
    apart: Callable[[Tensor], Tensor],
    joined: Callable[[Tensor, Tensor], Tensor],
    asked: Callable[[Tensor], bool] = lambda x: True,
) -> contextlib.AbstractContextManager[None]:
    """A context in which `F.scaled_dot_product_attention` is differentiated by its plain formula.

    Attention is computed by the plain formula, for the derivatives, and once more by the fused
    kernel, so that its value stays the same bit for bit. With dropout, which may be drawn only
    once, it is computed by the plain formula alone.

    Args:
        apart: takes a query, key or value; returns its value without derivatives.
        joined: takes the kernel's result and the formula's; returns the value of the first with
            the derivatives of the second.
        asked: takes a query, key or value; says whether it is to be differentiated. If none is,
            the kernel alone is used.
    """

    def make(fused: Attention) -> Attention:
        def attention(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            dropout_p: float = 0.0,
            *args: Any,
            **options: Any,
        ) -> Tensor:
            more = (attn_mask, dropout_p, *args)
            if not any(map(asked, (query, key, value))):
                return fused(query, key, value, *more, **options)
            with sdpa_kernel(SDPBackend.MATH):
                formula = fused(query, key, value, *more, **options)
            if dropout_p:
                return formula
            return joined(fused(apart(query), apart(key), apart(value), *more, **options), formula)

        return attention

    return replaced_attention(make)


def twice_differentiable() -> contextlib.AbstractContextManager[None]:
    """A context in which attention has second derivatives, which the fused kernels do not have."""
    return attention_by_formula(Tensor.detach, ValueOf.apply)
