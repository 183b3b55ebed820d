"""Train, validation and test: what a source gives, and how the missing parts are cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from layerwise.data.images import Images
from layerwise.data.stream import Stream
from layerwise.data.text import Text
from layerwise.errors import InputError

Source: TypeAlias = Images | Stream | Text

# The share of a set that comes without a test part, and the seed of that cut. The seed is fixed:
# runs that differ in `seed` are compared, so they are tested on the same images, and no image that
# one run validates on is what another is tested on.
TEST_SHARE = 0.2
TEST_SEED = 0


@dataclass(frozen=True)
class Splits:
    """A data set ready for training.

    Attributes:
        train: what trains.
        validation: what choices are made on; None where `load` was given `validation=0`.
        test: what is reported; never part of the other two.
        classes: the name of each label.
        name: as given to `load`.
        relabelled: which training images have a random label, (N,) bool; None where none was asked
            for.
        entropy_rate: of a text, in nats per token, where it is known.
    """

    train: Source
    validation: Source | None
    test: Source
    classes: tuple[str, ...]
    name: str
    relabelled: Tensor | None = None
    entropy_rate: float | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image; (T,) of one window of text."""
        return self.train.shape


@dataclass(frozen=True)
class Parts:
    """What a source holds before anything is cut: a set may come without the last two."""

    train: Source
    validation: Source | None
    test: Source | None
    classes: tuple[str, ...]
    entropy_rate: float | None = None


def complete(parts: Parts, *, name: str, validation: float, seed: int) -> Splits:
    """Cut the parts that are missing, and point every part at the training statistics."""
    train, held, test = parts.train, parts.validation, parts.test
    shapes = {role: part.shape for role, part in _named(parts).items()}
    if len({shape[1:] for shape in shapes.values()}) > 1:
        sizes = ", ".join(f"{role} {'x'.join(map(str, s[1:]))}" for role, s in shapes.items())
        raise InputError(f"data {name}: images of different sizes ({sizes}); give --data.size")
    if len({shape[0] for shape in shapes.values()}) > 1:
        # Each part was found grey or in colour by itself.
        train = _coloured(train)
        held, test = held and _coloured(held), test and _coloured(test)
    if test is None:
        train, test = _cut(train, TEST_SHARE, TEST_SEED)
    if validation == 0:
        held = None
    elif held is None:
        whole = len(train)
        train, held = _cut(train, validation, seed)
        if len(held) == 0:
            raise InputError(
                f"load(validation={validation}): no whole image of the {whole} in training; "
                "give a larger share, or 0 for no validation"
            )
    held = held and _normalized(held, train)
    test = _normalized(test, train)
    return Splits(train, held, test, parts.classes, name, entropy_rate=parts.entropy_rate)


def _named(parts: Parts) -> dict[str, Source]:
    every = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    return {role: part for role, part in every.items() if part is not None}


def _cut(part: Source, share: float, seed: int) -> tuple[Source, Source]:
    """Cut a part in two: images by class, text by position, whatever the seed."""
    if isinstance(part, Text):
        return part.cut(share)
    rest, chosen = stratify(part.labels, share, seed)
    return part.subset(rest), part.subset(chosen)


def _coloured(part: Source) -> Source:
    return part if isinstance(part, Text) else part.coloured()


def _normalized(part: Source, train: Source) -> Source:
    if isinstance(part, Text) or isinstance(train, Text):
        return part
    # A set may be in memory and its training part streamed, or the other way round: both have
    # `statistics`, which is all that is read.
    return part.normalized_by(train)


def relabel(splits: Splits, share: float, seed: int) -> Splits:
    """Give `share` of the training images, to the nearest whole number, a label drawn at random
    from all classes.

    Raises:
        InputError: a text, whose labels are its own next tokens.
    """
    train = splits.train
    if isinstance(train, Text):
        raise InputError(
            f"load({splits.name!r}, random_labels={share}): of images; leave it out for a text"
        )
    generator = torch.Generator().manual_seed(seed)
    count = len(train)
    chosen = torch.randperm(count, generator=generator)[: round(share * count)]
    labels = train.labels.clone()
    labels[chosen] = torch.randint(splits.num_classes, (len(chosen),), generator=generator)
    relabelled = torch.zeros(count, dtype=torch.bool)
    relabelled[chosen] = True
    return replace(splits, train=replace(train, labels=labels), relabelled=relabelled)


def stratify(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Cut a set in two with the classes in proportion.

    Every class gives the whole part of its share; the largest remainders then fill up to
    `round(N * share)`. A class keeps at least one image in the first part.

    Args:
        labels: int64, (N,).
        share: of the second part, in (0, 1).
        seed: of the choice; torch's global generator is neither read nor moved.

    Returns:
        The sorted indices of the first part (N - M,) and of the second (M,).
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    labels = labels.cpu()[order]
    count = torch.bincount(labels)
    quota = count * share
    take = quota.floor().long()
    missing = round(len(labels) * share) - int(take.sum())
    take[(quota - take).argsort(descending=True, stable=True)[:missing]] += 1
    take = take.minimum((count - 1).clamp_min(0))
    grouped = labels.argsort(stable=True)  # by class, shuffled within
    rank = torch.arange(len(labels)) - (count.cumsum(0) - count)[labels[grouped]]
    second = rank < take[labels[grouped]]
    chosen = order[grouped]
    return chosen[~second].sort().values, chosen[second].sort().values
