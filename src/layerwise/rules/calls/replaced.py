"""Replace the functions by which linear and convolutional layers are computed.

Within `replaced`, `F.linear`, `F.conv2d` and so on call a function of ours with x and the weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# (gradient of a layer's output, the layer's input, a matrix) -> the input's gradient, or the
# matrix's gradient if a final True is passed.
Back = Callable[..., Tensor]
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
