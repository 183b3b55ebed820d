"""From a set to batches: shuffled, augmented, normalised, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from layerwise.data.augment import (
    Augment,
    Draw,
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
from layerwise.data.curriculum import Curriculum
from layerwise.data.images import Images
from layerwise.data.stream import Stream
from layerwise.data.text import Text
from layerwise.errors import InputError

# A padded copy of the set saves the padding of every batch; above this many bytes the batch is
# padded instead.
PADDED_BYTES = 1 << 30


class Loader:
    """Batches `(x, y)`: x float32 (B, C, H, W) normalised, y int64 (B,), both on `device`; of
    a text windows and what follows each of their tokens, both int64 (B, T).

    The order of epoch e and the augmentation of its batch b depend on (seed, e, b) alone and not on
    any global generator, so a run that is resumed in the middle of an epoch sees the same bits.

    With `views` every image of a batch is drawn several times, each time augmented anew: x is then
    (V B, C, H, W), view after view, and y stays (B,). The first view has the bits of a loader that
    gives one.

    Args:
        images: the set, in memory or streamed; or a text, of which a window is what an image is
            here.
        batch_size: images a batch.
        augment: what happens to an image; outside training only its `normalize` does.
        train: shuffle and augment; else in order and as it is.
        device: of the batches. A set in memory that fits is kept there.
        seed: of order and augmentation, 0 or more.
        drop_last: leave out a last batch that is not full; by default as `train`.
        channels_last: memory format of x.
        part: (k, n), give of every batch the k-th of n parts alone, with the draws that its images
            have in the whole; a part of a small last batch may be empty, and is left out.
        views: V, how often each image is drawn in training; else it is once.
        curriculum: which of the images batches are drawn from, in training.

    Raises:
        InputError: no images, a batch larger than the set with `drop_last`, an augmentation that
            the images are too small for, an option of images for a text, a curriculum for another
            number of images; in training, batches that do not divide into n parts.
    """

    def __init__(
        self,
        images: Images | Stream | Text,
        batch_size: int,
        *,
        augment: Augment | None = None,
        train: bool,
        device: str | torch.device = "cpu",
        seed: int = 0,
        drop_last: bool | None = None,
        channels_last: bool = False,
        part: tuple[int, int] = (0, 1),
        views: int = 1,
        curriculum: Curriculum | None = None,
    ) -> None:
        if views < 1:
            raise InputError(f"Loader(views={views}): give 1 or more")
        self.part, self.views = part, views if train else 1
        self.curriculum = curriculum
        self.augment = Augment() if augment is None else augment
        self.batch_size = batch_size
        self.train = train
        self.device = torch.device(device)
        self.seed = seed
        self.drop_last = train if drop_last is None else drop_last
        self.channels_last = channels_last
        if batch_size < 1:
            raise InputError(f"Loader(batch_size={batch_size}): give 1 or more")
        if seed < 0:
            raise InputError(f"Loader(seed={seed}): give 0 or more")
        if train and batch_size % part[1]:
            raise InputError(
                f"Loader(batch_size={batch_size}): does not divide into {part[1]} equal parts, one "
                f"for each replica; give a multiple of {part[1]}"
            )
        if len(images) == 0:
            raise InputError(f"Loader(images): the set holds no {unit_of(images)}")
        if self.drop_last and batch_size > len(images):
            raise InputError(
                f"Loader(batch_size={batch_size}, drop_last=True): the set holds {len(images)} "
                f"{unit_of(images)}, so no batch is full; give a batch of at most {len(images)}"
            )
        if curriculum is not None and len(curriculum) != len(images):
            raise InputError(
                f"Loader(curriculum): it has {len(curriculum)} scores and the set "
                f"{len(images)} {unit_of(images)}; give those of the same split of the same data"
            )
        self.size = len(images)
        self._passes = 0
        self.shape: tuple[int, ...] = images.shape
        if isinstance(images, Text):
            _refuse_options_of_images(self.augment, views, channels_last)
            self._images: Images | Stream | Text = images.to(self.device)
        else:
            self._images = self._prepared(images)

    def _prepared(self, images: Images | Stream) -> Images | Stream:
        """The set where batches are cut from it, padded where that saves time."""
        self.augment.check(images.shape)
        self._image = images.shape
        side = images.shape[1:]
        mean, std = pixel_scale(self.augment, images)
        self._normalize = Normalize(mean, std, side, self.device, self.channels_last)

        margin = self.augment.crop if self.train else None
        self._padded = False
        if isinstance(images, Images):
            if _fits(images.images, self.device):
                images = images.to(self.device)
            if margin is not None and _padded_bytes(images.images, margin) <= PADDED_BYTES:
                padded = pad(images.images, margin, self.augment.pad_mode)
                images = Images(padded, images.labels)
                self._padded = True
        return images

    @property
    def tokens(self) -> bool:
        """Whether y holds a label for every token, (B, T)."""
        return isinstance(self._images, Text)

    @property
    def unit(self) -> str:
        """What there are `size` of: images, or windows."""
        return unit_of(self._images)

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The next epoch, 0 first: each pass of a loop written by hand is shuffled anew.

        `epoch(e)` neither reads nor moves this count.
        """
        self._passes += 1
        return self.epoch(self._passes - 1)

    def epoch(self, e: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `e`, from batch number `start` on."""
        order = self._order(e)
        if isinstance(self._images, Stream):
            return self._streamed(self._images, order, e, start)
        if isinstance(self._images, Text):
            return self._windows(self._images, order, e, start)
        return self._in_memory(self._images, order, e, start)

    def labels(self, e: int, start: int = 0) -> Iterator[Tensor]:
        """The labels of `epoch(e, start)` alone: no image is read."""
        order = self._order(e)
        if isinstance(self._images, Text):
            yield from (y for _, y in self._windows(self._images, order, e, start))
            return
        for _, index in self._indices(order, e, start):
            index = send(index, self._images.labels.device)
            yield send(self._images.labels.index_select(0, index), self.device)

    def _indices(self, order: Tensor, e: int, start: int) -> Iterator[tuple[int, Tensor]]:
        """Number of each batch from `start` on, and which images are in our part of it."""
        for b in range(start, len(self)):
            first = b * self.batch_size
            index = order[first : first + self.batch_size]
            if self.train and self.curriculum is not None:
                number = e * len(self) + b
                index = self.curriculum.batch(order, number, first, len(index))
            index = self._mine(index)
            if len(index):
                yield b, index

    def _mine(self, rows: Tensor) -> Tensor:
        k, n = self.part
        return rows if n == 1 else rows.tensor_split(n)[k]

    def _order(self, e: int) -> Tensor:
        if self.train:
            return torch.randperm(self.size, generator=self._generator(e, 0))
        return torch.arange(self.size)

    def denormalize(self, x: Tensor) -> Tensor:
        """Images as they come out of here, (B, C, H, W), back on the scale 0..1."""
        return self._normalize.back(x) / 255

    def _windows(
        self, text: Text, order: Tensor, e: int, start: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if self.curriculum is None:
            order = send(order, self.device)
        for _, index in self._indices(order, e, start):
            yield text.windows(send(index, self.device))

    def _in_memory(
        self, images: Images, order: Tensor, e: int, start: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if self.curriculum is None:
            order = send(order, images.images.device)
        for b, index in self._indices(order, e, start):
            index = send(index, images.images.device)
            views = [
                self._apply(images.images, index, draw, self._padded) for draw in self._draws(e, b)
            ]
            y = send(images.labels.index_select(0, index), self.device)
            yield _stacked(views), y

    def _streamed(
        self, stream: Stream, order: Tensor, e: int, start: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        numbers, index = [], []
        for b, chosen in self._indices(order, e, start):
            numbers.append(b)
            index.append(chosen)
        crops = (self._crops(e, b) for b in numbers)
        batches = stream.batches(index, crops, pin_memory=self.device.type == "cuda")
        for b, (pixels, y) in zip(numbers, batches, strict=True):
            pixels = send(pixels, self.device)
            every = torch.arange(len(y), device=self.device)
            # The worker has cut and scaled the box already, from the image at its full size: it
            # gives every view by itself, and else the image once.
            of_view = pixels.split(len(y)) if len(pixels) > len(y) else [pixels] * self.views
            views = [
                self._apply(image, every, draw._replace(box=None), padded=False)
                for image, draw in zip(of_view, self._draws(e, b), strict=True)
            ]
            yield _stacked(views), send(y, self.device)

    def _crops(self, e: int, b: int) -> tuple[Tensor, Augment] | None:
        """The boxes' random numbers in every view, (V, B, ...)."""
        boxes = [draw.box for draw in self._draws(e, b) if draw.box is not None]
        return (torch.stack(boxes), self.augment) if boxes else None

    def _draws(self, e: int, b: int) -> list[Draw]:
        """The random numbers of every view of a batch."""
        if not self.train:
            return [Draw()]
        batch = min(self.batch_size, self.size - b * self.batch_size)
        generators = [self._generator(e, b + 1, view) for view in range(self.views)]
        draws = [self.augment.draw(batch, self._image, generator) for generator in generators]
        return [Draw(*(None if d is None else self._mine(d) for d in draw)) for draw in draws]

    def _apply(self, images: Tensor, index: Tensor, draw: Draw, padded: bool) -> Tensor:
        """The images at `index` of a uint8 tensor (N, H', W', C), as float32 (B, C, H, W)."""
        augment, side = self.augment, self._image[1:]
        # The set may have stayed on the CPU: what is cut goes over as bytes, a quarter of floats.
        home, device = images.device, self.device
        if draw.corner is not None and not padded:
            assert augment.crop is not None
            images = pad(images.index_select(0, index), augment.crop, augment.pad_mode)
            index = torch.arange(len(index), device=home)
        if draw.box is not None:
            box = send(boxes(draw.box, *side, augment.scale, augment.ratio), device)
            pixels = send(images.index_select(0, index), device)
            x = resized_crop(pixels, box, _sent(draw.flip, device))
            x = self._normalize.floats(self._recolour(x, draw))
        else:
            if draw.corner is None and draw.flip is None:
                pixels = images.index_select(0, index)
            else:
                corner, flip = _sent(draw.corner, home), _sent(draw.flip, home)
                pixels = crop_flip(images, index, corner, flip, side)
            pixels = send(pixels, device)
            if draw.jitter is None and draw.grey is None:
                x = self._normalize.bytes(pixels)
            else:
                x = self._recolour(pixels.permute(0, 3, 1, 2).float(), draw)
                x = self._normalize.floats(x.contiguous())
        if draw.centre is not None:
            assert augment.cutout is not None
            x = cutout(x, send(draw.centre, device), augment.cutout)
        return x

    def _recolour(self, x: Tensor, draw: Draw) -> Tensor:
        """float32 0..255 (B, C, H, W) -> the same, not in place."""
        if draw.jitter is not None:
            assert self.augment.jitter is not None
            x = jitter(x, send(draw.jitter, self.device), hue=self.augment.jitter[3] > 0)
        if draw.grey is not None:
            grey = send(draw.grey, self.device)[:, None, None, None]
            x = torch.where(grey, luminance(x), x)
        return x

    def _generator(self, e: int, stream: int, view: int = 0) -> torch.Generator:
        """The generator of (seed, epoch, stream, view): 0 is the order, b + 1 is batch b."""
        entropy = (self.seed, e, stream, view) if view else (self.seed, e, stream)
        mixed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed[0]))


def unit_of(images: Images | Stream | Text) -> str:
    """What a set holds."""
    return "windows" if isinstance(images, Text) else "images"


def _refuse_options_of_images(augment: Augment, views: int, channels_last: bool) -> None:
    changed = [
        f"augment.{f.name}" for f in fields(augment) if getattr(augment, f.name) != f.default
    ]
    changed += ["views"] if views > 1 else []
    changed += ["channels_last"] if channels_last else []
    if changed:
        raise InputError(
            f"Loader({', '.join(changed)}): of images, and the set is text; leave out what is not "
            "its default"
        )


def pixel_scale(
    augment: Augment, images: Images | Stream
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on the scale 0..255, by which images are
    normalised."""
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


def _stacked(views: list[Tensor]) -> Tensor:
    return torch.cat(views) if len(views) > 1 else views[0]


def _sent(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else send(tensor, device)


def _padded_bytes(images: Tensor, margin: int) -> int:
    count, height, width, channels = images.shape
    return count * (height + 2 * margin) * (width + 2 * margin) * channels


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the set can stay on the device: in a quarter of what is free."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= free // 4
