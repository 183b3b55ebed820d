"""Attention with derivatives that its fused kernels do not have."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


class ValueOf(torch.autograd.Function):
    """The value of the first, with the derivatives of the second."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, derivative: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, gradient


@contextlib.contextmanager
def attention_by_formula(
    apart: Callable[[Tensor], Tensor],
    joined: Callable[[Tensor, Tensor], Tensor],
    asked: Callable[[Tensor], bool] = lambda x: True,
) -> Iterator[None]:
    """Within, `F.scaled_dot_product_attention` is differentiated as the products it is written as.

    It is computed by the plain formula, for the derivatives, and once more by the fused kernel, so
    that its value stays what it is elsewhere, bit for bit; with dropout, which is drawn once, by
    the plain formula alone.

    Args:
        apart: of a query, key or value: the same without what is to be differentiated.
        joined: of the kernel's result and the formula's: the value of the first, with the
            derivatives of the second.
        asked: whether a query, key or value is one to differentiate; where none is, there is the
            kernel alone.
    """
    fused = F.scaled_dot_product_attention

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

    # By its name, for that is how modules find it: a mode would not see the call inside
    # `F.multi_head_attention_forward`.
    F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def twice_differentiable() -> contextlib.AbstractContextManager[None]:
    """Within, attention has second derivatives, which PyTorch's fused kernels have not."""
    return attention_by_formula(Tensor.detach, ValueOf.apply)
