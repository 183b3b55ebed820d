"""Attention that can be differentiated twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
def twice_differentiable() -> Iterator[None]:
    """Within, `F.scaled_dot_product_attention` has second derivatives.

    PyTorch's fused kernels have none. Attention is then computed by the plain formula, for its
    derivatives, and once more by the fused kernel, so that its value stays what it is elsewhere,
    bit for bit; with dropout by the plain formula alone.
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
        given = (query, key, value, attn_mask, dropout_p, *args)
        with sdpa_kernel(SDPBackend.MATH):
            plain = fused(*given, **options)
        if dropout_p:
            return plain
        with torch.no_grad():
            same = fused(*given, **options)
        return ValueOf.apply(same, plain)

    # By its name, for that is how modules find it: a mode would not see the call inside
    # `F.multi_head_attention_forward`.
    F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused
