"""Send other gradients back through layers than those through their weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from layerwise.rules.calls.replaced import Back, replaced

Shape = tuple[int, ...]


@contextlib.contextmanager
def sending(
    weights: Container[Tensor], gradient: Callable[[Tensor, Shape], Tensor]
) -> Iterator[None]:
    """A context in which layers send `gradient` back to their input, not their true gradient.

    Args:
        weights: the weights of these layers; other layers send their true gradient.
        gradient: (weight, shape of the layer's input, as in `Call`) -> the input's gradient, of
            that shape.
    """

    def layer(
        name: str, op: Callable[..., Tensor], back: Back, x: Tensor, weight: Tensor
    ) -> Tensor:
        whole = weight if weight._base is None else weight._base
        if whole not in weights or not (x.requires_grad and torch.is_grad_enabled()):
            return op(x, weight)

        return Sent.apply(op(x.detach(), weight), x, lambda: gradient(whole, tuple(x.shape)))

    with replaced(layer):
        yield


class Sent(torch.autograd.Function):
    """y unchanged; its backward pass gives x the gradient `gradient()`, of x's shape."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, gradient: Callable[[], Tensor]) -> Tensor:
        ctx.mark_dirty(y)
        ctx.dtype, ctx.gradient = x.dtype, gradient
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        return dy, ctx.gradient().to(ctx.dtype), None


class Through(torch.autograd.Function):
    """y unchanged; its backward pass goes to x through another matrix than made y.

    With `signs`, the matrix has their signs: sign(signs) * matrix.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, matrix: Tensor, signs: Tensor | None, back: Back
    ) -> Tensor:
        ctx.mark_dirty(y)  # not a view of y, because the next operation may work in place
        ctx.save_for_backward(x, matrix, signs)
        ctx.back = back
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        x, matrix, signs = ctx.saved_tensors
        if signs is not None:
            matrix = signs.sign().mul_(matrix)
        dx = ctx.back(dy, x.to(dy.dtype), matrix.to(dy.dtype))
        return dy, dx.to(x.dtype), None, None, None
