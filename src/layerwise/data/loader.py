"""Batches of a data set: shuffled, augmented, normalised and on the device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from layerwise.data.augment import Augment, Draw
from layerwise.data.curriculum import Curriculum
from layerwise.data.pixels import send
from layerwise.data.samples import Job, Reading, Samples
from layerwise.errors import InputError


class Loader:
    """Gives batches `(x, y)` of a data set, on `device`.

    For images, x is float32 (B, C, H, W), normalised, and y is int64 (B,). For a text, x holds
    windows and y the token that follows each of theirs, both int64 (B, T).

    The order of epoch e and the augmentation of its batch b depend only on (seed, e, b) and not on
    any global generator, so a run that is resumed in the middle of an epoch sees the same bits.

    If the samples are contiguous (`Text(contiguous=True)`), each row of a batch continues in the
    same row of the next batch, in training, too: row r has the windows from number r n on, for n
    batches. If the last batch is not full, its rows are the first ones. Every epoch is the same.

    With `views`, every image of a batch is drawn several times and augmented anew each time: x is
    then (V B, C, H, W), view after view, and y stays (B,). The first view has the same bits as a
    loader with one view.

    Args:
        images: the set, in memory or streamed; or a text, whose windows play the role of images.
        batch_size: images in a batch.
        augment: the changes to an image; outside training only its `normalize` is applied.
        train: shuffle and augment; otherwise images come in order and unaugmented.
        device: of the batches. A set in memory is kept there if it fits.
        seed: of order and augmentation, 0 or more.
        drop_last: leave out a last batch that is not full; by default the value of `train`.
        channels_last: memory format of x.
        part: (k, n) gives only the k-th of n parts of every batch, with the random numbers that its
            images have in the whole batch. A part of a small last batch may be empty; then it is
            left out.
        views: V, how often each image is drawn in training; outside training it is drawn once.
        curriculum: chooses the images that training batches are drawn from; not for contiguous
            samples.

    Attributes:
        size: the number of images or windows.
        unit: "images" or "windows".
        tokens: whether y holds a label for every token, (B, T).
        shape: of one sample.

    Raises:
        InputError: the set is empty; a batch is larger than the set and `drop_last` is set; the
            images are too small for the augmentation; an option of images is given for a text; the
            curriculum is for another number of images; in training, the batch size is not a
            multiple of n.
    """

    def __init__(
        self,
        images: Samples,
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
        self.part, self.views = part, views if train else 1
        self.curriculum = curriculum
        self.augment = Augment() if augment is None else augment
        self.batch_size = batch_size
        self.train = train
        self.device = torch.device(device)
        self.seed = seed
        self.drop_last = train if drop_last is None else drop_last
        self.size, self.unit, self.tokens = len(images), images.unit, images.labels_tokens
        self.shape: tuple[int, ...] = images.shape
        self.contiguous = images.contiguous
        self._check(views)
        self._passes = 0
        self._reader = images.reader(
            Reading(self.augment, train, self.device, channels_last, views)
        )

    def _check(self, views: int) -> None:
        batch_size, n = self.batch_size, self.part[1]
        if views < 1:
            raise InputError(f"Loader(views={views}): give 1 or more")
        if batch_size < 1:
            raise InputError(f"Loader(batch_size={batch_size}): give 1 or more")
        if self.seed < 0:
            raise InputError(f"Loader(seed={self.seed}): give 0 or more")
        if self.train and batch_size % n:
            raise InputError(
                f"Loader(batch_size={batch_size}): does not divide into {n} equal parts, one for "
                f"each replica; give a multiple of {n}"
            )
        if self.size == 0:
            raise InputError(f"Loader(images): the set holds no {self.unit}")
        if self.drop_last and batch_size > self.size:
            raise InputError(
                f"Loader(batch_size={batch_size}, drop_last=True): the set holds {self.size} "
                f"{self.unit}, so no batch is full; give a batch of at most {self.size}"
            )
        if self.curriculum is not None and self.contiguous:
            raise InputError(
                f"Loader(curriculum): it changes the order of {self.unit}, and these are "
                "contiguous; leave one of both out"
            )
        if self.curriculum is not None and len(self.curriculum) != self.size:
            raise InputError(
                f"Loader(curriculum): it has {len(self.curriculum)} scores and the set "
                f"{self.size} {self.unit}; give those of the same split of the same data"
            )

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The next epoch, starting with epoch 0, so that every pass of your own loop is shuffled.

        `epoch(e)` neither reads nor changes the count of these passes.
        """
        self._passes += 1
        return self.epoch(self._passes - 1)

    def epoch(self, e: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `e`, from batch number `start` on."""
        return self._reader.batches(self._jobs(e, start))

    def labels(self, e: int, start: int = 0) -> Iterator[Tensor]:
        """Only the labels of `epoch(e, start)`; no image is read."""
        for job in self._jobs(e, start):
            yield send(self._reader.labels(job.index), self.device)

    def denormalize(self, x: Tensor) -> Tensor:
        """Images of a batch, (B, C, H, W), back on the scale 0..1."""
        return self._reader.denormalize(x)

    def _jobs(self, e: int, start: int) -> Iterator[Job]:
        """The samples and the random numbers of every batch from number `start` on.

        If batches are divided among replicas, only this loader's part of each is listed.
        """
        order = self._order(e)
        home = order  # of the order that batches are read in
        if self.curriculum is None:
            home = send(order, self._reader.home)  # once, instead of a copy for every batch
        for b in range(start, len(self)):
            first = b * self.batch_size
            batch = slice(first, first + self.batch_size)
            index, numbers = home[batch], order[batch]
            if self.train and self.curriculum is not None:
                number = e * len(self) + b
                index = numbers = self.curriculum.batch(order, number, first, len(index))
            index = self._mine(index)
            if len(index):
                yield Job(index, partial(self._draws, e, b, numbers))

    def _order(self, e: int) -> Tensor:
        if self.contiguous:
            return self._rows()
        if self.train:
            return torch.randperm(self.size, generator=self._generator(e, 0))
        return torch.arange(self.size)

    def _rows(self) -> Tensor:
        """Contiguous samples: batch after batch, in row r the next one of part r."""
        rows = min(self.batch_size, self.size)
        whole, rest = divmod(self.size, rows)
        longer = torch.arange(rows) < (0 if self.drop_last else rest)  # parts with one more
        starts = torch.cat([torch.zeros(1, dtype=torch.long), (whole + longer).cumsum(0)[:-1]])
        order = (starts + torch.arange(whole)[:, None]).flatten()
        return torch.cat([order, (starts + whole)[longer]])

    def _mine(self, rows: Tensor) -> Tensor:
        k, n = self.part
        return rows if n == 1 else rows.tensor_split(n)[k]

    def _draws(self, e: int, b: int, numbers: Tensor) -> list[Draw]:
        """The random numbers of every view of our part of a batch of images.

        Args:
            e, b: numbers of the epoch and of the batch.
            numbers: int64 (B,), of the images in the whole batch.
        """
        if not self.train:
            return [Draw()]
        channels, height, width = self.shape
        batch = min(self.batch_size, self.size - b * self.batch_size)
        draws = [
            self.augment.draw(batch, (channels, height, width), self._generator(e, b + 1, view))
            for view in range(self.views)
        ]
        if self.augment.flip == "alternating":
            first = self._first_flips[numbers]
            flips = [first ^ bool((e + view) % 2) for view in range(self.views)]
            draws = [draw._replace(flip=flip) for draw, flip in zip(draws, flips, strict=True)]
        return [Draw(*(None if d is None else self._mine(d) for d in draw)) for draw in draws]

    @cached_property
    def _first_flips(self) -> Tensor:
        """bool (N,): the images that are mirrored first, where flips alternate."""
        return torch.rand(self.size, generator=self._generator(0, 0, 1)) < 0.5

    def _generator(self, e: int, stream: int, view: int = 0) -> torch.Generator:
        """The generator of (seed, epoch, stream, view): stream 0 is the order, b + 1 is batch b."""
        numbers = (self.seed, e, stream, view) if view else (self.seed, e, stream)
        return torch.Generator().manual_seed(seed_of(*numbers))


def seed_of(*numbers: int) -> int:
    """A seed that is well mixed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
