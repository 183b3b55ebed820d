"""A labelled set of images that is too large for memory: worker processes decode each batch."""

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

from layerwise.data.augment import Augment, Draw
from layerwise.data.decode import Encoded, colour, cores, decode, fit, pixels
from layerwise.data.images import Images, pixel_statistics
from layerwise.data.pixels import boxes, send
from layerwise.data.samples import Job, Reader, Reading, Samples
from layerwise.data.stratify import stratify
from layerwise.data.transform import HasStatistics, ImageTransform, Statistics, stacked
from layerwise.errors import InputError

IN_MEMORY_BYTES = 4 << 30  # of decoded images; a larger set is streamed
SAMPLE = 2048  # images from which the mean and standard deviation of a stream are computed

# The random resized crop of a batch: `Draw.box` of every view, (V, B, ...), and the options that
# turn these numbers into boxes. The crop of one image: (V, ...).
Crop = tuple[Tensor, Augment]


@dataclass(frozen=True, eq=False)
class Stream(Samples):
    """Images that are decoded when their batch is due, always in colour.

    Workers decode and scale the images, and take random resized crops from them at full size.
    Everything else is done on the device, for the whole batch.

    Args:
        source: the encoded images.
        labels: int64, (N,), of the images at `index`.
        size: height and width of the decoded images, pixels.
        index: the images of `source` that belong to this set, int64 (N,); None for all.
        margin: without a random resized crop, the shorter side is scaled to `margin * size` and the
            centre is cut out.
        workers: number of processes that decode; 0 decodes in this process.
        reference: the training split, whose mean and standard deviation normalise this set; None
            if it is this set itself.
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
        """Mean and standard deviation of each channel on the scale 0..1, of the training split.

        Computed from up to `SAMPLE` evenly spaced images.
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

    def cut(self, share: float, seed: int) -> tuple[Stream, Stream]:
        """Divide the set in two with the classes in proportion; `share` is the second part."""
        first, second = stratify(self.labels, share, seed)
        return self.subset(first), self.subset(second)

    def normalized_by(self, reference: HasStatistics) -> Stream:
        """The same set, normalised by the mean and standard deviation of `reference`."""
        return replace(self, reference=reference)

    def reader(self, reading: Reading) -> Reader:
        return _StreamReader(self, ImageTransform(self, reading))

    def batches(
        self,
        index: Sequence[Tensor],
        crops: Iterable[Crop | None],
        pin_memory: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Decode batch after batch; the workers run ahead.

        Args:
            index: the images of every batch, int64 (B,).
            crops: the random resized crop of every batch; None for the central square.
            pin_memory: whether the images are wanted in pinned memory.

        Yields:
            Images and labels, on the CPU: uint8 (B, size, size, 3), with crops (V B, size, size,
            3), view after view; and int64 (B,).
        """
        loader = DataLoader(
            _Decoded(self),
            batch_sampler=_Jobs(index, crops),  # pyrefly: ignore  # items are pairs
            num_workers=self.workers,
            collate_fn=_stack,
            pin_memory=pin_memory,
            # By default, every epoch would advance torch's global generator.
            generator=torch.Generator().manual_seed(0),
        )
        for chosen, batch in zip(index, loader, strict=True):
            if isinstance(batch, InputError):
                raise batch
            yield batch, self.labels[chosen]


class _StreamReader(Reader):
    """Sends decoded batches to the device and augments them there."""

    def __init__(self, stream: Stream, transform: ImageTransform) -> None:
        super().__init__(stream.labels.device)
        self._stream, self._transform = stream, transform

    def batches(self, jobs: Iterable[Job]) -> Iterator[tuple[Tensor, Tensor]]:
        jobs, device = list(jobs), self._transform.device
        decoded = self._stream.batches(
            [job.index for job in jobs],
            (self._crop(job.draws()) for job in jobs),
            pin_memory=device.type == "cuda",
        )
        for job, (images, y) in zip(jobs, decoded, strict=True):
            images = send(images, device)
            every = torch.arange(len(y), device=device)
            # The workers have cropped already: they give every view by itself. Without crops they
            # give every image once.
            draws = job.draws()
            of_view = images.split(len(y)) if len(images) > len(y) else [images] * len(draws)
            views = [
                self._transform(view, every, draw._replace(box=None))
                for view, draw in zip(of_view, draws, strict=True)
            ]
            yield stacked(views), send(y, device)

    def labels(self, index: Tensor) -> Tensor:
        return self._stream.labels.index_select(0, index)

    def denormalize(self, x: Tensor) -> Tensor:
        return self._transform.denormalize(x)

    def _crop(self, draws: list[Draw]) -> Crop | None:
        """The random resized crop of a batch, or None."""
        boxes = [draw.box for draw in draws if draw.box is not None]
        return (torch.stack(boxes), self._transform.augment) if boxes else None


class _Jobs:
    """Gives a list of (image, its crop) for every batch."""

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
            return error  # raised here, it would arrive wrapped in the worker's traceback
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
    # Every image is (V, H, W, C): errors have been returned above.
    return torch.from_numpy(np.concatenate(np.stack(images, 1)))  # pyrefly: ignore


def gather(source: Encoded, labels: Tensor, size: int | None) -> Images | Stream:
    """A set in memory if its decoded images take at most `IN_MEMORY_BYTES`, otherwise a stream.

    Args:
        source: the encoded images.
        labels: int64, (N,).
        size: height and width in pixels; None if the images have one size.

    Raises:
        InputError: an image cannot be read; images differ in size, or have to be streamed, and
            `size` is None.
    """
    height, width = (size, size) if size is not None else pixels(source, 0).size
    nbytes = len(source) * height * width * 3
    if nbytes <= IN_MEMORY_BYTES:
        return Images(decode(source, size), labels)
    if size is None:
        raise InputError(
            f"data: {len(source)} images of {width}x{height} take {nbytes / 2**30:.0f} GiB when "
            "decoded, so they are streamed, which needs their size; give --data.size"
        )
    return Stream(source, labels, size)
