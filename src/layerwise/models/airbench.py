"""The network of a fast CIFAR-10 recipe: a whitening convolution, then six convolutions."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from layerwise.arguments import WIDEST, at_least, checks_arguments, positive
from layerwise.errors import InputError
from layerwise.models.building_blocks import Shape, check_sizes

WIDTHS = (64, 256, 256)  # output channels of the three pairs of convolutions


class Whiten(nn.Conv2d):
    """A convolution of fixed filters, whose outputs on the training images are uncorrelated and of
    variance 1; and the negatives of these outputs. Only its bias is trained.

    The filters are the eigenvectors of the covariance of k x k patches, divided by the square root
    of (eigenvalue + eps).

    Args:
        channels: of an image.
        kernel_size: k, pixels.
        eps: keeps directions with little variance small.
    """

    def __init__(self, channels: int, kernel_size: int = 2, eps: float = 5e-4):
        super().__init__(channels, 2 * channels * kernel_size**2, kernel_size)
        self.weight.requires_grad_(False)
        self.eps = eps

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Find the filters.

        Args:
            images: as the network gets them, (B, C, H, W).
        """
        patches = nn.functional.unfold(images.float(), self.kernel_size).transpose(1, 2)
        patches = patches.flatten(0, 1)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values.clamp(min=0) + self.eps).sqrt()).T
        self.weight.copy_(torch.cat([filters, -filters]).view_as(self.weight))


class Airbench(nn.Sequential):
    """Six convolutions after a whitening one."""

    def fit_to(self, images: Tensor, seed: int = 0) -> None:
        """Find the whitening's filters.

        Args:
            images: as the network gets them, (B, C, H, W).
            seed: not used; nothing is random.
        """
        whiten = self[0]
        assert isinstance(whiten, Whiten)
        whiten.fit(images)


@checks_arguments
def airbench(shape: Shape = (3, 32, 32), num_classes: int = 10, width: float = 1.0) -> nn.Module:
    """The network of cifar10-airbench (Jordan 2024, arXiv:2404.00498; the variant for Muon).

    A convolution with fixed filters that whiten 2x2 patches and a trained bias, then six 3x3
    convolutions with BatchNorm and GELU, of which the first, third and fifth are followed by 2x2
    max pooling; 3x3 max pooling and a linear layer. BatchNorm has only a bias, and its statistics
    move by 0.4 a step. The first C_in outputs of a convolution start as the identity. Deviations:
    the paper divides the output by the number D of the last layer's inputs; here the weights start
    D times smaller, which is the same for SGD with a learning rate D^2 times smaller. Its whitening
    bias is trained in the first three epochs, and its weights are of 16 bits; in the recipe here
    the bias is trained throughout, and weights have 32 bits.

    The command line finds the filters in 512 training images (the paper: in 5,000); your own loop
    calls `network.fit_to(images)`.

    Args:
        shape: of an image, (C, H, W); at least 25x25.
        num_classes: number of classes.
        width: multiplies the channels 64, 64, 256, 256, 256, 256.

    Raises:
        InputError: a size below 1; the images are too small.
    """
    check_sizes("airbench", shape, num_classes)
    positive("airbench", width=width)
    at_least(0, "airbench", WIDEST, width=width)
    channels, *sides = shape
    rows, columns = ((side - 1) // 8 // 3 for side in sides)
    if not rows or not columns:
        raise InputError(
            f"airbench(shape={tuple(shape)}): its poolings leave nothing of these images; give "
            "images of at least 25x25"
        )
    whiten = Whiten(channels)
    named: list[tuple[str, nn.Module]] = [("whiten", whiten), ("gelu", nn.GELU())]
    before = whiten.out_channels
    for pair, out in enumerate(max(1, round(width * c)) for c in WIDTHS):
        for second in (False, True):
            named.append(
                (f"conv{2 * pair + second + 1}", convolution(before, out, pool=not second))
            )
            before = out
    named.append(("pool", nn.MaxPool2d(3)))
    named.append(("flatten", nn.Flatten()))
    named.append(("classifier", small_linear(before * rows * columns, num_classes)))
    return Airbench(OrderedDict(named))


def convolution(channels: int, out: int, *, pool: bool) -> nn.Sequential:
    """A 3x3 convolution that starts as the identity, 2x2 max pooling if asked for, BatchNorm with a
    bias only, GELU."""
    conv = nn.Conv2d(channels, out, 3, padding="same", bias=False)
    nn.init.dirac_(conv.weight[: min(channels, out)].detach())
    norm = nn.BatchNorm2d(out, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    layers = [conv, *([nn.MaxPool2d(2)] if pool else []), norm, nn.GELU()]
    return nn.Sequential(*layers)


def small_linear(features: int, out: int) -> nn.Linear:
    """A linear layer without bias whose weights start with standard deviation 1 / features."""
    linear = nn.Linear(features, out, bias=False)
    nn.init.normal_(linear.weight, std=1 / features)
    return linear
