"""Reading images and labels from tables of the package `datasets`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from layerwise.data.decode import identify
from layerwise.data.sources.files import LARGEST_BYTES, read_file
from layerwise.data.sources.roles import roles
from layerwise.data.splits import Parts
from layerwise.data.stream import gather
from layerwise.errors import InputError

# Names of integer columns that hold labels. Integers of other names may be anything, such as an id.
OF_LABELS = ("label", "labels", "class", "classes", "target", "targets", "category", "y")


class Rows:
    """The image column of a table: encoded bytes or paths, read directly from the Arrow file."""

    def __init__(self, table: Any, column: str, split: str) -> None:
        self.column = column
        self.split = split
        self.table = table.select_columns([column]).with_format("arrow")

    @cached_property
    def rows(self) -> Any:
        # Directly from Arrow, which is mapped from disk: reading a row through `datasets` takes as
        # long as decoding a small JPEG.
        return self.table[:].column(self.column)

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is not a fork gets the name of the file to map instead of the images.
        return {name: value for name, value in vars(self).items() if name != "rows"}

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, i: int) -> Image.Image:
        row = self.rows[i].as_py()
        if row is None:
            raise ValueError("no image")
        if row["bytes"] is not None:
            return identify(io.BytesIO(row["bytes"]))
        if row["path"] is None:
            raise ValueError("neither bytes nor a path")
        return identify(io.BytesIO(read_file(Path(row["path"]), LARGEST_BYTES)))

    def where(self, i: int) -> str:
        return f"row {i} of split {self.split!r} (column {self.column!r})"


def parts_of(name: str, tables: Mapping[str, Any], size: int | None) -> Parts:
    """The parts of a set; columns are found by their type, and by their name if that is not enough.

    Args:
        name: of the data set, for errors.
        tables: a `datasets.Dataset` for every split.
        size: height and width in pixels; None if the images have one size.

    Raises:
        InputError: there is no split to train on, or there are two splits for one part; there is no
            image column or no label column, or several that could be; there is a single class; the
            splits have different classes or columns; an image cannot be read.
    """
    found = roles(f"data {name}: its splits", tables)
    if "train" not in found and len(tables) == 1:
        found = {"train": next(iter(tables))}
    if "train" not in found:
        raise InputError(
            f"data {name}: no split 'train', there is: {', '.join(tables)}; rename one of them"
        )
    train = tables[found["train"]]
    image = _image_column(name, train.features)
    label, classes = _label_column(name, train)
    if len(classes) == 1:
        raise InputError(
            f"data {name}: the label column {label!r} has a single class, {classes[0]}, so "
            "every prediction is right; give a set of at least two classes"
        )
    left_out = [
        f"split {split!r} with {len(table)} rows is left out, because its name is none of those of "
        "training, validation and test parts"
        for split, table in tables.items()
        if split not in found.values()
    ]
    parts: dict[str, Any] = {}
    for role, split in found.items():
        table = tables[split]
        for column in (image, label):
            if column not in table.features:
                raise InputError(
                    f"data {name}: split {split!r} has no column {column!r}, there is: "
                    f"{', '.join(table.features)}; give every split the same columns"
                )
        labels = _labels(name, table, split, label, classes)
        if labels is None and role != "train":
            # Its labels are not published, as those of ImageNet's test part.
            left_out.append(f"split {split!r} is left out, because none of its rows has a label")
            continue
        if labels is None or len(labels) == 0:
            raise InputError(f"data {name}: split {split!r} has no labelled rows; fill it")
        names = getattr(table.features[label], "names", None)
        if names is not None and tuple(names) != classes:
            odd = sorted(set(names) ^ set(classes)) or "their order"
            raise InputError(
                f"data {name}: split {split!r} has other classes than 'train' ({odd}); "
                "give every split the same"
            )
        parts[role] = gather(Rows(table, image, split), labels, size)
    if "test" not in parts:
        # Published results of such a set are those on its validation part.
        parts["test"] = parts.pop("validation", None)
    return Parts(
        parts["train"],
        parts.get("validation"),
        parts["test"],
        classes,
        left_out=tuple(left_out),
    )


def _image_column(name: str, features: Mapping[str, Any]) -> str:
    found = [c for c, feature in features.items() if type(feature).__name__ == "Image"]
    if len(found) != 1:
        raise InputError(
            f"data {name}: {len(found) or 'no'} image columns among {', '.join(features)}; "
            "one column must hold images"
        )
    return found[0]


def _label_column(name: str, table: Any) -> tuple[str, tuple[str, ...]]:
    """The label column and its classes.

    It is the column of class labels. Of several, it is the one that decides the others, as the 100
    classes of CIFAR-100 decide its 20, or the one named as labels usually are. Without a column of
    class labels, it is the integer column named so.
    """
    features = table.features
    named = {c: tuple(f.names) for c, f in features.items() if type(f).__name__ == "ClassLabel"}
    if named:
        column = _finest(table, named) or _usual(named)
        if column is None:
            raise InputError(
                f"data {name}: the columns {', '.join(named)} all hold class labels; keep one of "
                "them, or name it 'label'"
            )
        return column, named[column]
    integers = [
        c
        for c, f in features.items()
        if type(f).__name__ == "Value" and re.match("u?int", str(f.dtype))
    ]
    column = _usual(integers)
    if column is None:
        raise InputError(
            f"data {name}: no label column among {', '.join(features)}; one column must be a "
            "ClassLabel, or be integer and named 'label'"
        )
    values = sorted({v for v in table[column][:] if v is not None and v != -1})
    return column, tuple(str(v) for v in values)


def _finest(table: Any, named: Mapping[str, tuple[str, ...]]) -> str | None:
    """The column of class labels that decides all others; None if there is none."""
    if len(named) == 1:
        return next(iter(named))
    column = max(named, key=lambda c: len(named[c]))
    values = {c: list(table[c][:]) for c in named}
    for other in named:
        pairs = set(zip(values[column], values[other], strict=True))
        if len(pairs) > len(set(values[column])):
            return None
    return column


def _usual(columns: Iterable[str]) -> str | None:
    """The column named `label`, or the only one named as labels usually are; None without one."""
    found = [c for c in columns if c.casefold() in OF_LABELS]
    if "label" in found:
        return "label"
    return found[0] if len(found) == 1 else None


def _labels(
    name: str, table: Any, split: str, column: str, classes: tuple[str, ...]
) -> Tensor | None:
    """The labels, int64 (N,); None if no row has one (-1 is the usual sign for that)."""
    values = list(table[column][:])
    if all(v is None or v == -1 for v in values):
        return None
    if type(table.features[column]).__name__ == "ClassLabel":
        number = {i: i for i in range(len(classes))}
    else:
        number = {int(c): i for i, c in enumerate(classes)}
    for row, value in enumerate(values):
        if value not in number:
            raise InputError(
                f"data {name}: row {row} of split {split!r} has label {value!r}, which is not a "
                "class of the split 'train'; correct it or remove the row"
            )
    return torch.tensor([number[v] for v in values], dtype=torch.int64)
