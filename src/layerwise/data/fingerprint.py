"""A fingerprint of a data set, from which a run learns that its data have changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from layerwise.data.splits import Part, Splits
from layerwise.data.text import Text
from layerwise.errors import InputError

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Fingerprint:
    """Facts about a data set that are cheap to find.

    It covers the names of the classes; the shape of a sample; the number of samples of every part,
    their labels and their order; and the names and sizes of the files, if the set is a folder on
    this machine. Of a text it covers every token. It does not cover pixels: an image that was
    exchanged for another one under the same name, with the same size in bytes, is not noticed.

    Attributes:
        classes: the name of each label.
        shape: of one sample.
        counts: the number of samples of each part that the set has.
        labels: a checksum over the labels of each part, in order; of a text, over its tokens.
        files: a checksum over the names and sizes of the files; None without files.
    """

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    counts: Mapping[str, int]
    labels: Mapping[str, str]
    files: str | None

    @classmethod
    def of(cls, splits: Splits) -> Fingerprint:
        """The fingerprint of a data set as it was loaded."""
        parts: dict[str, Part] = {
            name: part for name in PARTS if (part := getattr(splits, name)) is not None
        }
        return cls(
            splits.classes,
            tuple(splits.shape),
            {name: len(part) for name, part in parts.items()},
            {name: checksum(_labels(part)) for name, part in parts.items()},
            splits.files,
        )

    @classmethod
    def from_dict(cls, found: Any) -> Fingerprint:
        """The fingerprint that `as_dict` gave.

        Raises:
            InputError: it is not one.
        """
        try:
            read = cls(
                tuple(map(str, found["classes"])),
                tuple(map(int, found["shape"])),
                {str(name): int(count) for name, count in found["counts"].items()},
                {str(name): str(labels) for name, labels in found["labels"].items()},
                None if found["files"] is None else str(found["files"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"it is not the fingerprint of a data set: {error!r}") from error
        return read

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return asdict(self)

    def changed(self, now: Fingerprint) -> str | None:
        """What is different in `now`, the same data later; None if nothing is.

        Only the first difference is named, from the classes down to the labels.
        """
        if self.classes != now.classes:
            return _of_classes(self.classes, now.classes)
        if self.counts != now.counts:
            return "; ".join(
                f"{self.counts.get(part, 0):,} {part} samples then, {now.counts.get(part, 0):,} now"
                for part in PARTS
                if self.counts.get(part) != now.counts.get(part)
            )
        if self.shape != now.shape:
            return f"samples of shape {self.shape} then, {now.shape} now"
        if self.files != now.files:
            return "files have other names or sizes than then"
        if odd := [part for part in PARTS if self.labels.get(part) != now.labels.get(part)]:
            return f"other labels, or another order, in the part {', '.join(odd)}"
        return None

    def changed_training(self, now: Fingerprint) -> str | None:
        """What is different in the training samples of `now`; None if nothing is.

        Their shape may differ, and so may the other parts. Files are compared if both sets have
        files.
        """
        alone = [
            replace(
                each,
                shape=(),
                counts={"train": each.counts.get("train", 0)},
                labels={"train": each.labels.get("train", "")},
                files=each.files if self.files and now.files else None,
            )
            for each in (self, now)
        ]
        return alone[0].changed(alone[1])


def checksum(tensor: Tensor) -> str:
    """A checksum over the values of a tensor."""
    return hashlib.sha256(tensor.cpu().contiguous().numpy().data).hexdigest()[:16]


def _labels(part: Part) -> Tensor:
    return part.tokens if isinstance(part, Text) else part.labels


def _of_classes(then: tuple[str, ...], now: tuple[str, ...]) -> str:
    before, after = set(then), set(now)
    gone = [name for name in then if name not in after]
    new = [name for name in now if name not in before]
    if not gone and not new:
        return "the classes have another order"
    if len(gone) == len(new) == 1:
        return f"the class {gone[0]!r} is now {new[0]!r}"
    said = []
    for names, what in ((gone, "gone"), (new, "new")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            said.append(f"{', '.join(map(repr, names[:3]))}{more} {what}")
    return f"{len(then)} classes then, {len(now)} now ({'; '.join(said)})"
