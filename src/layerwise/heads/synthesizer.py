"""The auxiliary networks of decoupled neural interfaces: synthetic gradients and inputs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from torch import Tensor, nn

from layerwise.arguments import DEEPEST, at_least, check_fields
from layerwise.blocks.layout import ChannelsLastShape, Shape
from layerwise.errors import InputError
from layerwise.heads.head import ChannelsLast, feature_maps
from layerwise.labels import rows_of


@dataclass(frozen=True)
class Synthesizer:
    """The recipe of a network that predicts the gradient of an activation from the activation.

    Jaderberg et al. 2017 (arXiv:1608.05343), appendix: `layers` times (convolution, BatchNorm,
    ReLU), convolution, all with the activation's own channels and size; without layers before the
    last it is linear, as in Czarnecki et al. 2017 (arXiv:1703.00522). On a vector, and on every
    token or position of a network that keeps channels last, the same with linear layers. The last
    layer's weight is zero at the start, and by default its bias as well, so training begins without
    any gradient. With labels (cDNI), a
    linear layer of the one-hot label is added to the first layer's output.

    Calling it with the activation's shape, and the number of classes (None to ignore labels), makes
    a module `(h, y) -> gradient`. h and the gradient are (B, *shape); y is class numbers, (B,) or
    (B, T), or probabilities, (B, C) or (B, T, C), or None. Any function of the same two arguments
    can be used as a synthesizer.

    Args:
        layers: the number of layers before the last; 0 for a linear synthesizer.
        kernel_size: the kernel size of the convolutions, odd.
        width: hidden channels or units; null for the activation's own.
        zero_bias: whether the last layer's bias is zero at the start; otherwise it is PyTorch's
            default, so training begins with the same gradient for all samples.
        batch_norm: whether BatchNorm follows every layer but the last; without it, layers before
            the last have a bias. A batch's mean holds what all its samples have in common, such as
            the position in a sequence, which BatchNorm takes away.

    Raises:
        InputError: a size below 1, or `layers` below 0; an even kernel size; when the module is
            called: real numbers that are not the classes' probabilities.
    """

    layers: int = 2
    kernel_size: int = 5
    width: int | None = None
    zero_bias: bool = True
    batch_norm: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "heads.Synthesizer")
        at_least(0, "heads.Synthesizer", DEEPEST, layers=self.layers)
        at_least(1, "heads.Synthesizer", kernel_size=self.kernel_size, width=self.width)
        if self.kernel_size % 2 == 0:
            raise InputError(
                f"heads.Synthesizer(kernel_size={self.kernel_size}): an even kernel has no "
                "centre, so the gradient would be shifted; give an odd one"
            )

    def __call__(self, shape: Shape, classes: int | None) -> nn.Module:
        maps = len(shape) == 3 and not isinstance(shape, ChannelsLastShape)
        features = shape[0] if maps else shape[-1]
        sizes = [features, *[self.width or features] * self.layers, features]
        layers = _chain(sizes, self.kernel_size if maps else None, self.batch_norm)
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
        if self.zero_bias:
            nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
        first, *rest = layers
        made = _Synthesis(first, nn.Sequential(*rest), sizes[1], classes)
        if not rest and made.context is not None:  # its output is the gradient, without a layer
            nn.init.zeros_(made.context.weight)
        return made


@dataclass(frozen=True)
class InputSynthesizer:
    """The recipe of a network that predicts a block's input from the network's input.

    Jaderberg et al. 2017, section 2.3: it unlocks the forward pass, too. Feature maps are predicted
    from an image by averaging the image to their size, `layers` times (convolution, BatchNorm,
    ReLU), convolution. Anything else is predicted from the input as a vector, with linear layers.
    The paper leaves the form open.

    Calling it with the shapes of the network's input and of the block's input, without the batch
    dimension, makes the network: (B, *input_shape) -> (B, *shape).

    Args:
        layers: the number of layers before the last.
        kernel_size: the kernel size of the convolutions, odd.
        width: hidden channels or units; null for those of the block's input.
    """

    layers: int = 2
    kernel_size: int = 5
    width: int | None = None

    def __call__(self, input_shape: Shape, shape: Shape) -> nn.Module:
        if len(input_shape) == len(shape) == 3:
            name = "heads.InputSynthesizer"
            first, (colours, *_) = feature_maps(input_shape, name)
            last, (channels, *size) = feature_maps(shape, name)
            sizes = [colours, *[self.width or channels] * self.layers, channels]
            convolutions = _chain(sizes, self.kernel_size)
            last = [ChannelsLast()] if last else []
            return nn.Sequential(*first, nn.AdaptiveAvgPool2d(tuple(size)), *convolutions, *last)
        hidden = self.width or shape[-1]
        sizes = [math.prod(input_shape), *[hidden] * self.layers, math.prod(shape)]
        return nn.Sequential(nn.Flatten(), *_chain(sizes, None), nn.Unflatten(1, shape))


class _Synthesis(nn.Module):
    """A synthesizer's network: first(h) + context(y), then `rest`; (B, *shape) -> (B, *shape)."""

    def __init__(self, first: nn.Module, rest: nn.Module, width: int, classes: int | None):
        super().__init__()
        self.first, self.rest = first, rest
        self.context: nn.Embedding | None = None
        if classes is not None:
            # A linear layer maps a one-hot label to a row of its weight; initialised as usual.
            self.context = nn.Embedding(classes, width)
            nn.init.uniform_(self.context.weight, -(classes**-0.5), classes**-0.5)

    def _context(self, y: Tensor) -> Tensor:
        """The contribution of the labels, (..., width); 0 for a label that is ignored."""
        assert self.context is not None
        classes = self.context.num_embeddings
        if y.is_floating_point():
            if y.shape[-1] != classes:
                raise InputError(
                    f"heads.Synthesizer: got labels {tuple(y.shape)} of {y.dtype}; it takes class "
                    f"numbers, or one number for each of the {classes} classes: leave context out"
                )
            return rows_of(self.context.weight, y)
        return self.context(y.clamp(min=0)) * (y >= 0).unsqueeze(-1)

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        out = self.first(h)
        if self.context is not None:
            assert y is not None
            context = self._context(y)
            while context.dim() < out.dim():  # it is the same at every position
                context = context.unsqueeze(-1 if isinstance(self.first, nn.Conv2d) else 1)
            out = out + context
        return self.rest(out)


class _PositionNorm(nn.BatchNorm1d):
    """BatchNorm of features on the last axis: (B, D), (B, T, D) or (B, H, W, C)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(0, -2)).view(input.shape)


def _chain(sizes: list[int], kernel_size: int | None, batch_norm: bool = True) -> list[nn.Module]:
    """Layers with BatchNorm and ReLU between them: convolutions, or linear without a kernel size.

    Args:
        sizes: the channels or units before, between and after the layers.
        kernel_size: the kernel size of the convolutions; None for linear layers.
        batch_norm: whether there is BatchNorm.
    """
    layers: list[nn.Module] = []
    for k, (features, out) in enumerate(itertools.pairwise(sizes)):
        bias = k == len(sizes) - 2 or not batch_norm
        if kernel_size is None:
            layers.append(nn.Linear(features, out, bias=bias))
            layers += [_PositionNorm(out)] if batch_norm else []
        else:
            layers.append(nn.Conv2d(features, out, kernel_size, padding="same", bias=bias))
            layers += [nn.BatchNorm2d(out)] if batch_norm else []
        layers.append(nn.ReLU())
    return layers[: -2 if batch_norm else -1]
