"""Labels that are embedded in the network's input."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from layerwise.errors import InputError
from layerwise.inputs import Inputs, describe

Shape = tuple[int, ...]


class LabelEmbedding(nn.Module, ABC):
    """The base class of modules that embed labels in a network's inputs.

    Args:
        shape: shape of an input, without the batch dimension.
        classes: number of classes, C.
        strength: size of a label in the input, on the input's scale.
        asked_by: name of the rule, for errors.

    Raises:
        InputError: a strength that is not positive.
    """

    def __init__(self, shape: Shape, classes: int, strength: float, asked_by: str):
        super().__init__()
        if not strength > 0:
            raise InputError(f"{asked_by}(strength={strength}): give a positive number")
        self.shape, self.classes = shape, classes
        self.strength, self.asked_by = strength, asked_by

    @abstractmethod
    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        """Every input with each of its n labels, label after label, (n B, ...).

        Args:
            x: inputs, (B, ...).
            shares: the shares of the classes in each label, (n, B, C).
        """

    def checked(self, inputs: Inputs) -> Tensor:
        """Return the network's inputs if they are one tensor of real numbers.

        Raises:
            InputError: they are something else.
        """
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise InputError(
                f"{self.asked_by}: got {describe(inputs)}; a label is embedded in one tensor of "
                "real numbers, such as images, not in tokens: take rules.DGL"
            )
        return inputs

    def of(self, y: Tensor, x: Tensor) -> Tensor:
        """The shares of the classes in labels y, (B,): one-hot, (B, C), in the dtype of `x`."""
        return (y.unsqueeze(1) == torch.arange(self.classes, device=y.device)).to(x)

    def neutral(self, x: Tensor) -> Tensor:
        """Equal shares of all classes, (B, C)."""
        return x.new_full((len(x), self.classes), 1 / self.classes)

    def every(self, x: Tensor) -> Tensor:
        """One-hot shares of each class for every input, (C, B, C)."""
        each = torch.eye(self.classes, device=x.device, dtype=x.dtype)
        return each.unsqueeze(1).expand(-1, len(x), -1)


class LabelPixels(LabelEmbedding):
    """Replace the first C values of an input by the label: `strength` for its class and 0 for the
    others (Hinton 2022, arXiv:2212.13345). In an image these are the first channel's first pixels.

    Args:
        shape, classes, strength, asked_by: as in `LabelEmbedding`.

    Raises:
        InputError: an input has fewer values than there are classes; a strength that is not
            positive.
    """

    def __init__(self, shape: Shape, classes: int, strength: float, asked_by: str):
        super().__init__(shape, classes, strength, asked_by)
        if math.prod(shape) < classes:
            raise InputError(
                f"{asked_by}: an input of {tuple(shape)} has no room for {classes} labels of one "
                "value each; give larger inputs"
            )
        place = torch.stack(torch.unravel_index(torch.arange(classes), shape))
        self.register_buffer("place", place, persistent=False)

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        out = torch.cat([x] * len(shares))
        out[(slice(None), *self.get_buffer("place"))] = (self.strength * shares).flatten(0, 1)
        return out


class LabelWaves(LabelEmbedding):
    """Add a wave for the label to the whole image, so that a convolution sees it everywhere
    (spatially extended labels: Scodellaro et al. 2023, arXiv:2312.14924).

    Class c adds sqrt(2) strength cos(2 pi k_c r) to all channels at position r, where k_c is the
    c-th longest wave of a Fourier series on the image. Waves differ in frequency or orientation; a
    difference in phase alone would be invisible to a convolution.

    Args:
        shape: shape of an input, (C, H, W).
        classes, asked_by: as in `LabelEmbedding`.
        strength: root mean square of a wave.

    Raises:
        InputError: inputs that are not images, or too small for one wave per class; a strength that
            is not positive.
    """

    def __init__(self, shape: Shape, classes: int, strength: float, asked_by: str):
        super().__init__(shape, classes, strength, asked_by)
        if len(shape) != 3:
            raise InputError(
                f"{asked_by}(waves=True): an input of {tuple(shape)} is not an image (C, H, W); "
                "leave waves out"
            )
        _, height, width = shape
        # k and -k are the same wave, so one of them; only frequencies below the highest one.
        rows, columns = range((height + 1) // 2), range(-((width - 1) // 2), (width + 1) // 2)
        vectors = [k for k in itertools.product(rows, columns) if k > (0, 0)]
        if len(vectors) < classes:
            raise InputError(
                f"{asked_by}(waves=True): {height}x{width} images have {len(vectors)} waves, too "
                f"few for {classes} classes; leave waves out"
            )
        vectors.sort(key=lambda k: (k[0] / height) ** 2 + (k[1] / width) ** 2)
        down = torch.arange(height).unsqueeze(1) / height
        right = torch.arange(width) / width
        angles = torch.stack([a * down + b * right for a, b in vectors[:classes]])  # C H W
        waves = math.sqrt(2) * strength * torch.cos(2 * math.pi * angles)
        self.register_buffer("waves", waves, persistent=False)

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        labels = torch.einsum("nbc,chw->nbhw", shares, self.get_buffer("waves").to(shares.dtype))
        return torch.cat([x + label.unsqueeze(1) for label in labels])
