"""A labelled set of images in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from layerwise.data.pixels import pad, send
from layerwise.data.samples import Job, Reader, Reading, Samples
from layerwise.data.stratify import stratify
from layerwise.data.transform import HasStatistics, ImageTransform, Statistics, stacked
from layerwise.errors import InputError

# A padded copy of the set saves padding every batch. If it would take more bytes than this, every
# batch is padded instead.
PADDED_BYTES = 1 << 30
RESIZED_BYTES = 8 << 30  # images in memory that are scaled to more than this are refused


@dataclass(frozen=True, eq=False)
class Images(Samples):
    """Images as bytes in one contiguous tensor, from which batches are cut without Python loops.

    Args:
        images: uint8 0..255, (N, H, W, C); made contiguous. Channels come last so that one pixel
            is one memory access and a crop is a single `index_select` over pixels.
        labels: int64, (N,); or real numbers for a criterion of your own, float32, (N, D).
        reference: the training split, whose mean and standard deviation normalise this set; None
            if it is this set itself.

    Raises:
        InputError: images or labels of another type or shape. Floats are refused whatever their
            range: nothing says whether 1.0 is white or almost black.
    """

    images: Tensor
    labels: Tensor
    reference: HasStatistics | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, value in (("images", self.images), ("labels", self.labels)):
            if not isinstance(value, Tensor):
                raise InputError(
                    f"Images({name}): got {type(value).__name__}; give a tensor, such as "
                    "torch.as_tensor(...)"
                )
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise InputError(
                f"Images(images): got {self.images.dtype} {tuple(self.images.shape)}; give bytes "
                "0..255, torch.uint8 (N, H, W, C); floats 0..1 become bytes by "
                "(255 * images).round().to(torch.uint8)"
            )
        real = self.labels.dtype == torch.float32 and self.labels.dim() == 2
        of_kind = self.labels.dtype == torch.int64 and self.labels.dim() == 1
        if not (real or of_kind) or len(self.labels) != len(self.images):
            raise InputError(
                f"Images(labels): got {self.labels.dtype} {tuple(self.labels.shape)} for "
                f"{len(self.images)} images; give one torch.int64 for each, or "
                "torch.float32 (N, D)"
            )
        object.__setattr__(self, "images", self.images.contiguous())  # the class is frozen

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Images({len(self)} of {self.shape} on {self.images.device})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image, in the order in which a `Loader` gives it."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel on the scale 0..1, of the training split."""
        if self.reference is not None:
            return self.reference.statistics
        return pixel_statistics(self.images.split(4096))

    def to(self, device: str | torch.device) -> Images:
        """The same set with images and labels on `device`."""
        return Images(self.images.to(device), self.labels.to(device), self.reference)

    def subset(self, indices: Tensor) -> Images:
        """The images at `indices` (int64, (M,)), copied, in that order."""
        index = indices.to(self.images.device)
        return Images(
            self.images.index_select(0, index), self.labels.index_select(0, index), self.reference
        )

    def cut(self, share: float, seed: int) -> tuple[Images, Images]:
        """Divide the set in two with the classes in proportion; `share` is the second part."""
        first, second = stratify(self.labels, share, seed)
        return self.subset(first), self.subset(second)

    def normalized_by(self, reference: HasStatistics) -> Images:
        """The same set, normalised by the mean and standard deviation of `reference`."""
        return Images(self.images, self.labels, reference)

    def coloured(self) -> Images:
        """The same set with three channels."""
        if self.shape[0] == 3:
            return self
        return Images(self.images.repeat(1, 1, 1, 3), self.labels, self.reference)

    def resized(self, size: int) -> Images:
        """The images at `size` x `size`: scaled (antialiased bilinear), then the centre cut out."""
        _, height, width = self.shape
        if height == width == size:
            return self
        short = min(height, width)
        tall, wide = round(height * size / short), round(width * size / short)
        if (nbytes := len(self) * size * size * self.shape[0]) > RESIZED_BYTES:
            raise InputError(
                f"load(size={size}): {len(self)} images of {size}x{size} take "
                f"{nbytes / 2**30:,.0f} GiB; give a smaller size"
            )
        top, left = (tall - size) // 2, (wide - size) // 2
        parts = []
        for part in self.images.split(1024):  # limits the size of the float copy
            x = F.interpolate(
                part.permute(0, 3, 1, 2).float(), (tall, wide), mode="bilinear", antialias=True
            )
            x = x[:, :, top : top + size, left : left + size].round_().clamp_(0, 255)
            parts.append(x.to(torch.uint8).permute(0, 2, 3, 1))
        return Images(torch.cat(parts).contiguous(), self.labels, self.reference)

    def reader(self, reading: Reading) -> Reader:
        transform = ImageTransform(self, reading)
        images = self.to(reading.device) if _fits(self.images, reading.device) else self
        margin = reading.augment.crop if reading.train else None
        padded = margin is not None and _padded_bytes(images.images, margin) <= PADDED_BYTES
        if margin is not None and padded:
            wider = pad(images.images, margin, reading.augment.pad_mode)
            images = Images(wider, images.labels)
        return _ImagesReader(images, transform, padded)


class _ImagesReader(Reader):
    """Cuts batches from a set in memory."""

    def __init__(self, images: Images, transform: ImageTransform, padded: bool) -> None:
        super().__init__(images.images.device)
        self._images, self._transform, self._padded = images, transform, padded

    def batches(self, jobs: Iterable[Job]) -> Iterator[tuple[Tensor, Tensor]]:
        for index, draws in jobs:
            index = send(index, self.home)
            views = [
                self._transform(self._images.images, index, draw, self._padded) for draw in draws()
            ]
            y = send(self._images.labels.index_select(0, index), self._transform.device)
            yield stacked(views), y

    def labels(self, index: Tensor) -> Tensor:
        return self._images.labels.index_select(0, send(index, self._images.labels.device))

    def denormalize(self, x: Tensor) -> Tensor:
        return self._transform.denormalize(x)


def pixel_statistics(parts: Iterable[Tensor]) -> Statistics:
    """Mean and standard deviation (of the population) of each channel, on the scale 0..1.

    They come from a histogram of each channel, whose sums are exact: every device gives the same.

    Args:
        parts: the images, uint8 tensors (..., C).
    """
    counts: list[Tensor] = []
    for part in parts:
        found = [torch.bincount(c.reshape(-1), minlength=256).cpu() for c in part.unbind(-1)]
        counts = [a + b for a, b in zip(counts, found, strict=True)] if counts else found
    level = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for count in counts:
        weight = count.double() / count.sum()
        mean = (weight * level).sum()
        std = (weight * (level - mean) ** 2).sum().sqrt()
        means.append(float(mean))
        stds.append(float(std) or 1.0)  # a constant channel is centred and not divided by zero
    return tuple(means), tuple(stds)


def _padded_bytes(images: Tensor, margin: int) -> int:
    count, height, width, channels = images.shape
    return count * (height + 2 * margin) * (width + 2 * margin) * channels


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the set can stay on the device: it may take a quarter of the free memory."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= free // 4
