"""Calls of linear and convolutional layers: find them, or replace the gradient through them.

Within `replaced`, the functions by which modules compute their layers (`F.linear`, `F.conv2d` and
so on) call a function of ours with x and the weight. `layer_calls` uses it to list the layers of a
network, `sending` to send other gradients back than through the weights.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from layerwise.blocks import Blocks
from layerwise.blocks.unchanged import trainable, unchanged
from layerwise.inputs import leading
from layerwise.rules.calls.as_written import as_written
from layerwise.rules.calls.products import Products

Shape = tuple[int, ...]
# (gradient of a layer's output, the layer's input, a matrix) -> the input's gradient, or the
# matrix's gradient if a final True is passed.
Back = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer.

    Attributes:
        x: the layer's input, (N, features); for a convolution (B, channels, ...).
        sends: whether the input has a gradient if all parameters are trained.
        maps: whether the layer is a convolution.
    """

    x: Tensor
    sends: bool
    maps: bool


def layer_calls(
    blocks: Blocks, asked_by: str, ends: Container[int] = (), change: bool = False
) -> dict[Tensor, list[Call]]:
    """The calls of layers in a pass of two samples.

    The network is left unchanged. A warning names parameters that are multiplied in another way
    than by a call of a layer. Both samples are zeros; BatchNorm does not mix them.

    Args:
        blocks: the network, made with an example.
        asked_by: the call, for errors.
        ends: the numbers of the blocks whose output continues detached.
        change: draw the second sample at random instead; all other random numbers stay the same.

    Returns:
        The calls, by the parameter that is their weight, as a whole or in part.

    Raises:
        InputError: the shapes between the blocks are not known.
    """
    blocks.known_shapes(asked_by, "its layers are not either")
    found: defaultdict[Tensor, list[Call]] = defaultdict(list)
    products = Products(dict(blocks.named_parameters()))

    def layer(
        name: str, op: Callable[..., Tensor], back: Back, x: Tensor, weight: Tensor
    ) -> Tensor:
        whole = weight if weight._base is None else weight._base
        found[whole].append(Call(x.detach(), x.requires_grad, "conv" in name))
        with products.paused():
            return op(x, weight)

    like = next((p for p in blocks.parameters() if p.is_floating_point()), torch.zeros(()))
    with (
        trainable(blocks),
        torch.enable_grad(),
        unchanged(blocks),
        replaced(layer),
        as_written(blocks),
        products,
    ):
        blocks.train()  # in eval mode a whole attention layer may be one kernel
        for module in blocks.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        h = blocks.zeros(2, like)
        if change:
            first = leading(h)
            first[1] = torch.randn_like(first[1]) if first.is_floating_point() else 1
        torch.manual_seed(0)  # dropout
        with blocks.passes(h) as passes:
            for k in range(len(blocks)):
                h = passes.run(k, h)
                h = h.detach() if k in ends else h
    if products.found:
        warnings.warn(
            f"{asked_by}: {', '.join(products.found)} is multiplied in another way than by a call "
            "of F.linear, F.conv or torch.addmm under these names, and keeps its true gradient; "
            "write F.linear(x, weight), not x @ weight.T or a function imported by itself",
            stacklevel=2,
        )
    return dict(found)


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


# (name, the operation as a function of x and the weight, its backward pass, x, the weight) -> y
Layer = Callable[[str, Callable[..., Tensor], Back, Tensor, Tensor], Tensor]


@contextlib.contextmanager
def replaced(layer: Layer) -> Iterator[None]:
    """A context in which linear and convolutional layers call `layer`.

    The functions are replaced under their names, because modules find them by name: a mode would
    not see the calls inside `F.multi_head_attention_forward`.
    """
    places = [(F, "linear", _linear), (torch, "addmm", _addmm)]
    places += [(F, f"conv{n}d", _convolution(n)) for n in (1, 2, 3)]
    places += [(F, f"conv_transpose{n}d", _transposed(n)) for n in (1, 2, 3)]
    before = [(module, name, getattr(module, name)) for module, name, _ in places]
    try:
        for module, name, make in places:
            setattr(module, name, make(getattr(module, name), layer))
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def _linear(function: Callable[..., Tensor], layer: Layer) -> Callable[..., Tensor]:
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])  # as PyTorch does: (B, ..., I) -> (N, I)
        y = layer(
            "F.linear",
            lambda x, w: function(x, w, bias),
            lambda dy, x, b, of_matrix=False: dy.T @ x if of_matrix else dy @ b,
            rows,
            weight,
        )
        if input.dim() == 2:
            return y
        # Not a view, as in F.linear: the next operation may work in place, which copies a view.
        return torch.ops.aten._unsafe_view(y, [*input.shape[:-1], y.shape[-1]])

    return linear


def _addmm(function: Callable[..., Tensor], layer: Layer) -> Callable[..., Tensor]:
    def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, **options: Any) -> Tensor:
        if options:
            return function(input, mat1, mat2, **options)
        return layer(
            "addmm",
            lambda x, w: function(input, x, w),
            lambda dy, x, b, of_matrix=False: x.T @ dy if of_matrix else dy @ b.T,
            mat1,
            mat2,
        )

    return addmm


def _convolution(n: int) -> Callable[..., Any]:
    def make(function: Callable[..., Tensor], layer: Layer) -> Callable[..., Tensor]:
        def convolution(
            input: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: int | Sequence[int] = 1,
            padding: int | Sequence[int] | str = 0,
            dilation: int | Sequence[int] = 1,
            groups: int = 1,
        ) -> Tensor:
            single = input.dim() == n + 1
            x = input.unsqueeze(0) if single else input
            s, d = _each(stride, n), _each(dilation, n)
            if padding == "same":
                total = [a * (k - 1) for a, k in zip(d, weight.shape[2:], strict=True)]
                p = [t // 2 for t in total]
                if any(t % 2 for t in total):  # one more at the end
                    x = F.pad(x, [e for t in reversed(total) for e in (0, t % 2)])
            else:
                p = _each(0 if isinstance(padding, str) else padding, n)

            def back(dy: Tensor, x: Tensor, b: Tensor, of_matrix: bool = False) -> Tensor:
                return _back(of_matrix, dy, x, b, s, p, d, False, [0] * n, groups)

            y = layer(
                f"F.conv{n}d",
                lambda x, w: function(x, w, bias, s, p, d, groups),
                back,
                x,
                weight,
            )
            return y.squeeze(0) if single else y

        return convolution

    return make


def _transposed(n: int) -> Callable[..., Any]:
    def make(function: Callable[..., Tensor], layer: Layer) -> Callable[..., Tensor]:
        def transposed(
            input: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: int | Sequence[int] = 1,
            padding: int | Sequence[int] = 0,
            output_padding: int | Sequence[int] = 0,
            groups: int = 1,
            dilation: int | Sequence[int] = 1,
        ) -> Tensor:
            single = input.dim() == n + 1
            x = input.unsqueeze(0) if single else input
            s, p, o, d = (_each(v, n) for v in (stride, padding, output_padding, dilation))

            def back(dy: Tensor, x: Tensor, b: Tensor, of_matrix: bool = False) -> Tensor:
                return _back(of_matrix, dy, x, b, s, p, d, True, o, groups)

            y = layer(
                f"F.conv_transpose{n}d",
                lambda x, w: function(x, w, bias, s, p, o, groups, d),
                back,
                x,
                weight,
            )
            return y.squeeze(0) if single else y

        return transposed

    return make


def _back(of_matrix: bool, dy: Tensor, x: Tensor, matrix: Tensor, *how: Any) -> Tensor:
    """The gradient of a convolution's input, or of its matrix if `of_matrix`."""
    wanted = [not of_matrix, of_matrix, False]
    found = torch.ops.aten.convolution_backward(dy, x, matrix, None, *how, wanted)
    return found[of_matrix]


def _each(value: int | Sequence[int], n: int) -> list[int]:
    """A convolution's option as one number for each of its n dimensions."""
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values
