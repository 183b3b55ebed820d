"""The interface between a `Loader` and data sets: images in memory, streams of images, texts.

B samples of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from layerwise.data.augment import Augment, Draw

if TYPE_CHECKING:
    from typing_extensions import Self  # `typing` has it from Python 3.11 on


@dataclass(frozen=True)
class Reading:
    """How a `Loader` wants its batches.

    Attributes:
        augment: of images; outside training only its `normalize` is used.
        train: whether images are augmented.
        device: where batches are wanted.
        channels_last: memory format of images.
        views: how often every image of a batch is drawn.
    """

    augment: Augment
    train: bool
    device: torch.device
    channels_last: bool
    views: int


class Job(NamedTuple):
    """A batch that a `Loader` asks for.

    index: the samples, int64 (B,). draws: gives the random numbers of the augmentation, one `Draw`
    per view; every call gives the same numbers.
    """

    index: Tensor
    draws: Callable[[], list[Draw]]


class Reader(ABC):
    """Gives batches of one data set, as one `Loader` wants them.

    Args:
        home: where the samples are; an index that is already there need not be copied.
    """

    def __init__(self, home: torch.device) -> None:
        self.home = home

    @abstractmethod
    def batches(self, jobs: Iterable[Job]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches (x, y), on the wanted device."""

    @abstractmethod
    def labels(self, index: Tensor) -> Tensor:
        """The labels of the samples at `index`, where the samples are. No image is read."""

    @abstractmethod
    def denormalize(self, x: Tensor) -> Tensor:
        """Images of a batch, (B, C, H, W), back on the scale 0..1."""


class Samples(ABC):
    """A data set, or a part of one, from which a `Loader` makes batches.

    Attributes:
        unit: what `len` counts, in the plural.
        labels_tokens: whether every token of a sample has a label of its own.
    """

    unit: ClassVar[str] = "images"
    labels_tokens: ClassVar[bool] = False

    @property
    def contiguous(self) -> bool:
        """Whether each sample continues in the next one and batches keep this: row r of a batch
        continues in row r of the next batch."""
        return False

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def reader(self, reading: Reading) -> Reader:
        """A reader of this set.

        Raises:
            InputError: `reading` does not suit the set.
        """

    @abstractmethod
    def cut(self, share: float, seed: int) -> tuple[Self, Self]:
        """Divide the set in two; `share` of it is the second part."""

    def coloured(self) -> Self:
        """The same set with three channels; a set without grey images is returned as it is."""
        return self

    def resized(self, size: int) -> Self:
        """The same images at `size` x `size` pixels; a set of that size is returned as it is."""
        return self

    def normalized_by(self, reference: Any) -> Self:
        """The same set, normalised by the statistics of the set `reference`."""
        return self
