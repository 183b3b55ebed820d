"""A labelled set too large for memory: decoded by worker processes, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layerwise.data.augment import Augment, boxes
from layerwise.data.decode import Encoded, colour, cores, decode, fit, pixels
from layerwise.data.images import HasStatistics, Images, Statistics, pixel_statistics
from layerwise.errors import InputError

IN_MEMORY_BYTES = 4 << 30  # decoded; a larger set is streamed
SAMPLE = 2048  # images that the mean and standard deviation of a stream are taken from

# Uniform numbers of `Draw.box` in every view, (V, B, ...), and what reads them; of one image (V,
# ...).
Crop = tuple[Tensor, Augment]


@dataclass(frozen=True, eq=False)
class Stream:
    """Images that are decoded when their batch is due, always in colour.

    Decoding, scaling and a random resized crop happen in the workers, on the image at its full
    size; all the rest is done on the device for the whole batch.

    Args:
        source: what is decoded.
        labels: int64, (N,), of the images at `index`.
        size: height and width of what comes out, pixels.
        index: which images of `source`, int64 (N,); None for all.
        margin: without a random resized crop the shorter side is scaled to `margin * size` and the
            centre is cut out.
        workers: processes; 0 decodes in this one.
        reference: the training split that gives this set its mean and standard deviation;
            None where that is this set itself.
    """

    source: Encoded
    labels: Tensor
    size: int
    index: Tensor | None = None
    margin: float = 1.0
    workers: int = field(default_factory=lambda: max(cores() - 1, 1))
    reference: HasStatistics | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Stream({len(self)} of {self.shape}, {self.workers} workers)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return 3, self.size, self.size

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel on the scale 0..1, of the reference split.

        Taken from up to `SAMPLE` images at even distances.
        """
        if self.reference is not None:
            return self.reference.statistics
        chosen = torch.linspace(0, len(self) - 1, min(SAMPLE, len(self))).round().long()
        batches = self.batches(list(chosen.split(64)), (None for _ in chosen))
        return pixel_statistics(images for images, _ in batches)

    def subset(self, indices: Tensor) -> Stream:
        """The images at `indices` (int64, (M,)), in that order."""
        index = indices if self.index is None else self.index[indices]
        return replace(self, labels=self.labels[indices], index=index)

    def normalized_by(self, reference: HasStatistics) -> Stream:
        """The same set, its mean and standard deviation taken from `reference`."""
        return replace(self, reference=reference)

    def coloured(self) -> Stream:
        """Itself."""
        return self

    def batches(
        self,
        index: Sequence[Tensor],
        crops: Iterable[Crop | None],
        pin_memory: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Decode batch after batch, ahead of what is asked for.

        Args:
            index: int64 (B,) for every batch, into this set.
            crops: the random resized crop of every batch; None for the central square.

        Yields:
            uint8 (B, size, size, 3), with crops (V B, size, size, 3), view after view, and int64
            (B,); on the CPU.
        """
        loader = DataLoader(
            _Decoded(self),
            batch_sampler=_Jobs(index, crops),  # pyrefly: ignore  # items are ours, not integers
            num_workers=self.workers,
            collate_fn=_stack,
            pin_memory=pin_memory,
            # Its own: by default every epoch would move torch's global generator.
            generator=torch.Generator().manual_seed(0),
        )
        for chosen, batch in zip(index, loader, strict=True):
            if isinstance(batch, InputError):
                raise batch
            yield batch, self.labels[chosen]


class _Jobs:
    """For every batch the list of (image, its part of the crop's random numbers)."""

    def __init__(self, index: Sequence[Tensor], crops: Iterable[Crop | None]) -> None:
        self.index = index
        self.crops = crops

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[list[tuple[int, Crop | None]]]:
        for index, crop in zip(self.index, self.crops, strict=False):
            rows = (
                [None] * len(index)
                if crop is None
                else [(row, crop[1]) for row in crop[0].unbind(1)]
            )
            yield list(zip(index.tolist(), rows, strict=True))


class _Decoded(Dataset[Any]):
    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, index: tuple[int, Crop | None]) -> np.ndarray | InputError:
        i, crop = index
        stream = self.stream
        try:
            image = pixels(stream.source, i if stream.index is None else int(stream.index[i]))
        except InputError as error:
            return error  # raised in a worker it would arrive wrapped in the worker's traceback
        if crop is None:
            return np.asarray(colour(fit(image, stream.size, stream.margin)))[None]
        uniform, augment = crop
        width, height = image.size
        views = []
        for box in boxes(uniform, height, width, augment.scale, augment.ratio):
            top, left, tall, wide = box.tolist()
            view = image.crop((left, top, left + wide, top + tall))
            view = view.resize((stream.size, stream.size), Image.Resampling.BILINEAR)
            views.append(np.asarray(colour(view)))
        return np.stack(views)


def _stack(images: list[np.ndarray | InputError]) -> Tensor | InputError:
    for image in images:
        if isinstance(image, InputError):
            return image
    # Every image is (V, H, W, C); no errors are left.
    return torch.from_numpy(np.concatenate(np.stack(images, 1)))  # pyrefly: ignore


def gather(source: Encoded, labels: Tensor, size: int | None) -> Images | Stream:
    """In memory where the decoded images take at most `IN_MEMORY_BYTES`, else a stream.

    Raises:
        InputError: as `decode`; and a set to be streamed without `size`.
    """
    height, width = (size, size) if size is not None else pixels(source, 0).size
    nbytes = len(source) * height * width * 3
    if nbytes <= IN_MEMORY_BYTES:
        return Images(decode(source, size), labels)
    if size is None:
        raise InputError(
            f"data: {len(source)} images of {width}x{height} take {nbytes / 2**30:.0f} GiB decoded "
            "and are streamed at one size; give --data.size"
        )
    return Stream(source, labels, size)
