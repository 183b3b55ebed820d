"""Training, validation and test sets: cutting the parts that a source does not have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from layerwise.data.images import Images
from layerwise.data.stratify import stratify
from layerwise.data.stream import Stream
from layerwise.data.text import Text
from layerwise.errors import InputError
from layerwise.labels import IGNORED

Part: TypeAlias = Images | Stream | Text

# If a set comes without a test part, this share of it is the test part, cut with this seed. The
# seed is fixed because runs that differ in `seed` are compared: all are tested on the same images,
# and no run is validated on an image that another is tested on.
TEST_SHARE = 0.2
TEST_SEED = 0


@dataclass(frozen=True)
class Splits:
    """A data set ready for training.

    Attributes:
        train: for training.
        validation: for choices; None if `load` was called with `validation=0`.
        test: for reported results; disjoint from the other two.
        classes: the name of each label; of each of the network's outputs, if labels are real
            numbers.
        name: as given to `load`.
        relabelled: the training images with a random label, (N,) bool; None if random labels were
            not asked for.
        entropy_rate: of a text, in nats per token; None if it is not known.
        files: a checksum over the names and sizes of the set's files; None if it has none.
    """

    train: Part
    validation: Part | None
    test: Part
    classes: tuple[str, ...]
    name: str
    relabelled: Tensor | None = None
    entropy_rate: float | None = None
    files: str | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image; (T,) of one window of text."""
        return self.train.shape

    @property
    def real(self) -> bool:
        """Whether labels are real numbers, not classes."""
        return not isinstance(self.train, Text) and self.train.labels.is_floating_point()

    def example_labels(self, count: int) -> Tensor:
        """The labels of the first training samples, (count, ...) or fewer."""
        index = torch.arange(min(count, len(self.train)))
        if isinstance(self.train, Text):
            return self.train.windows(index)[1]
        return self.train.labels[index]


@dataclass(frozen=True)
class Parts:
    """The parts that a source has; a set may come without validation and test parts.

    Attributes:
        files: a checksum over the names and sizes of the set's files; None if it has none.
        left_out: a sentence for each part of the source that belongs to none of the three.
    """

    train: Part
    validation: Part | None
    test: Part | None
    classes: tuple[str, ...]
    entropy_rate: float | None = None
    files: str | None = None
    left_out: tuple[str, ...] = ()


def complete(parts: Parts, *, name: str, validation: float, seed: int) -> Splits:
    """Cut the missing parts, and normalise every part by the training part's statistics."""
    train, held, test = parts.train, parts.validation, parts.test
    shapes = {role: part.shape for role, part in _named(parts).items()}
    if len({shape[1:] for shape in shapes.values()}) > 1:
        sizes = ", ".join(f"{role} {'x'.join(map(str, s[1:]))}" for role, s in shapes.items())
        raise InputError(f"data {name}: images of different sizes ({sizes}); give --data.size")
    if len({shape[0] for shape in shapes.values()}) > 1:
        # One part may be grey and another in colour.
        train = train.coloured()
        held, test = held and held.coloured(), test and test.coloured()
    if test is None:
        train, test = train.cut(TEST_SHARE, TEST_SEED)
    if validation == 0:
        held = None
    elif held is None:
        whole = len(train)
        train, held = train.cut(validation, seed)
        if len(held) == 0:
            raise InputError(
                f"load(validation={validation}): this share of the {whole} training images is "
                "less than one image; give a larger share, or 0 for no validation"
            )
    if not isinstance(train, Text):
        held, test = held and held.normalized_by(train), test.normalized_by(train)
    return Splits(
        train,
        held,
        test,
        parts.classes,
        name,
        entropy_rate=parts.entropy_rate,
        files=parts.files,
    )


def _named(parts: Parts) -> dict[str, Part]:
    every = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    return {role: part for role, part in every.items() if part is not None}


def relabel(splits: Splits, share: float, seed: int) -> Splits:
    """Give a share of the training images labels that are drawn at random from all classes.

    Args:
        splits: the set; only its training part changes.
        share: of the training images, in (0, 1]; rounded to whole images.
        seed: of the choice and of the labels.

    Raises:
        InputError: the set is text, whose labels are its own next tokens.
    """
    train = splits.train
    if isinstance(train, Text):
        raise InputError(
            f"load({splits.name!r}, random_labels={share}): only images can have random "
            "labels; leave it out for a text"
        )
    if splits.real:
        raise InputError(
            f"load({splits.name!r}, random_labels={share}): only classes can be drawn at random, "
            "and these labels are real numbers; leave it out"
        )
    generator = torch.Generator().manual_seed(seed)
    count = len(train)
    chosen = torch.randperm(count, generator=generator)[: round(share * count)]
    labels = train.labels.clone()
    labels[chosen] = torch.randint(splits.num_classes, (len(chosen),), generator=generator)
    relabelled = torch.zeros(count, dtype=torch.bool)
    relabelled[chosen] = True
    return replace(splits, train=replace(train, labels=labels), relabelled=relabelled)


def hide_labels(splits: Splits, share: float, unlabelled: bool, seed: int) -> Splits:
    """Let a share of the training images keep their labels, the classes in proportion.

    Args:
        splits: the set; only its training part changes.
        share: of the training images, in (0, 1); rounded to whole images.
        unlabelled: whether the other images stay, with the label `IGNORED`. If not, those that keep
            their label are repeated until there are equally many images as before.
        seed: of the choice.

    Raises:
        InputError: the set is text; no label would be left; labels are real numbers, none of which
            says that a label is missing.
    """
    train = splits.train
    if isinstance(train, Text):
        raise InputError(
            f"load({splits.name!r}, labels={share}): only images can lack labels; leave it out for "
            "a text"
        )
    if splits.real and unlabelled:
        raise InputError(
            f"load({splits.name!r}, labels={share}): labels that are real numbers cannot be "
            "missing; also give unlabelled=False, on a command line --data.unlabelled false"
        )
    _, known = stratify(train.labels, share, seed)
    if not len(known):
        raise InputError(
            f"load(labels={share}): this share of the {len(train)} training images is less than "
            "one label; give a larger share"
        )
    if not unlabelled:
        part = train.subset(known[torch.arange(len(train)) % len(known)])
        return replace(splits, train=part.normalized_by(train))
    labels = torch.full_like(train.labels, IGNORED)
    labels[known] = train.labels[known]
    return replace(splits, train=replace(train, labels=labels))


def labelled(part: Part) -> Part:
    """The samples of a part that have a label; a text as it is."""
    if isinstance(part, Text):
        return part
    known = part.labels != IGNORED
    return part if bool(known.all()) else part.subset(known.nonzero().squeeze(1))
