"""From images of a set to a batch: augmented, normalised, on the device.

B batch, H height, W width, C channels, N images in the set.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from layerwise.data.augment import Augment, Draw
from layerwise.data.pixels import (
    Normalize,
    boxes,
    crop_flip,
    cutout,
    jitter,
    luminance,
    pad,
    resized_crop,
    send,
)
from layerwise.data.samples import Reading

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class HasStatistics(Protocol):
    """A set of images, in memory or streamed."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        ...

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel on the scale 0..1."""
        ...


class ImageTransform:
    """Makes batches of images from bytes, as a `Loader` wants them.

    Args:
        images: the set; its shape and statistics are read.
        reading: augmentation, normalisation, device and memory format.

    Raises:
        InputError: the images are too small for the augmentation.
    """

    def __init__(self, images: HasStatistics, reading: Reading) -> None:
        reading.augment.check(images.shape)
        self.augment, self.device = reading.augment, reading.device
        self.side = images.shape[1:]
        mean, std = pixel_scale(reading.augment, images)
        self._normalize = Normalize(mean, std, self.side, self.device, reading.channels_last)

    def __call__(self, images: Tensor, index: Tensor, draw: Draw, padded: bool = False) -> Tensor:
        """The images at `index`, augmented and normalised.

        Args:
            images: uint8 (N, H', W', C), on the device of the batch or on the CPU.
            index: int64 (B,), on the device of `images`.
            draw: the random numbers of the batch.
            padded: whether `images` are padded for `Augment.crop` already.

        Returns:
            float32 (B, C, H, W), on the device of the batch.
        """
        if draw.corner is not None and not padded:
            assert self.augment.crop is not None
            chosen = images.index_select(0, index)
            images = pad(chosen, self.augment.crop, self.augment.pad_mode)
            index = torch.arange(len(index), device=images.device)
        scaled = self._resized if draw.box is not None else self._cropped
        x = scaled(images, index, draw)
        if draw.centre is not None:
            assert self.augment.cutout is not None
            x = cutout(x, send(draw.centre, self.device), self.augment.cutout)
        return x

    def denormalize(self, x: Tensor) -> Tensor:
        """Images of a batch, (B, C, H, W), back on the scale 0..1."""
        return self._normalize.back(x) / 255

    def _resized(self, images: Tensor, index: Tensor, draw: Draw) -> Tensor:
        """With a random resized crop."""
        assert draw.box is not None
        augment, device = self.augment, self.device
        box = send(boxes(draw.box, *self.side, augment.scale, augment.ratio), device)
        pixels = send(images.index_select(0, index), device)
        x = resized_crop(pixels, box, _sent(draw.flip, device))
        return self._normalize.floats(self._recoloured(x, draw))

    def _cropped(self, images: Tensor, index: Tensor, draw: Draw) -> Tensor:
        """With a crop of the same size, or none."""
        home = images.device
        if draw.corner is None and draw.flip is None:
            pixels = images.index_select(0, index)
        else:
            corner, flip = _sent(draw.corner, home), _sent(draw.flip, home)
            pixels = crop_flip(images, index, corner, flip, self.side)
        # A set that stayed on the CPU is copied to the device as bytes, a quarter of the floats.
        pixels = send(pixels, self.device)
        if draw.jitter is None and draw.grey is None:
            return self._normalize.bytes(pixels)
        x = self._recoloured(pixels.permute(0, 3, 1, 2).float(), draw)
        return self._normalize.floats(x.contiguous())

    def _recoloured(self, x: Tensor, draw: Draw) -> Tensor:
        """float32 0..255 (B, C, H, W) -> the same, not in place."""
        if draw.jitter is not None:
            assert self.augment.jitter is not None
            x = jitter(x, send(draw.jitter, self.device), hue=self.augment.jitter[3] > 0)
        if draw.grey is not None:
            grey = send(draw.grey, self.device)[:, None, None, None]
            x = torch.where(grey, luminance(x), x)
        return x


def pixel_scale(augment: Augment, images: HasStatistics) -> Statistics:
    """Mean and standard deviation of each channel on the scale 0..255, as normalisation uses them.

    Args:
        augment: says how to normalise.
        images: the set; its statistics are read if `augment` asks for them.
    """
    channels = images.shape[0]
    if augment.normalize == "none":
        return (0.0,) * channels, (255.0,) * channels
    if augment.normalize == "symmetric":
        return (127.5,) * channels, (127.5,) * channels
    if augment.mean is not None and augment.std is not None:
        mean, std = augment.mean, augment.std
    else:
        mean, std = images.statistics
    return tuple(255 * m for m in mean), tuple(255 * s for s in std)


def stacked(views: list[Tensor]) -> Tensor:
    """The views of a batch, (B, ...) each, as one tensor (V B, ...), view after view."""
    return torch.cat(views) if len(views) > 1 else views[0]


def _sent(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else send(tensor, device)
