"""Images in class folders."""

from __future__ import annotations

import io
import os
from pathlib import Path

import torch
from PIL import Image

from layerwise.data.images import Images
from layerwise.data.sources import cache
from layerwise.data.splits import Parts
from layerwise.data.stream import Stream, gather
from layerwise.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
ROLES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


class Files:
    """Image files on disk."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, i: int) -> Image.Image:
        # Read whole: an image that fails half way leaves no file open.
        return Image.open(io.BytesIO(self.paths[i].read_bytes()))

    def where(self, i: int) -> str:
        return str(self.paths[i])


def folder(path: Path, *, name: str, root: Path, size: int | None) -> Parts:
    """Read `path/{train,val,test}/CLASS/...` or `path/CLASS/...`.

    Of the first layout, val and test may be absent; with val alone, val is the test part. A class
    is a folder's name, and its images may lie in folders below. Hidden files are passed over.

    Args:
        name: as the user gave it, for errors.
        root: of the cache of decoded images.
        size: height and width in pixels; None where the images agree.

    Raises:
        InputError: no folder, none of its own, one that cannot be read, a class without images,
            classes that differ between the parts, an image that cannot be read, sizes that differ.
    """
    listed = listing(path, name)
    files = [file for classes in listed.values() for paths in classes.values() for file in paths]
    key = cache.key("folder", str(path.resolve()), size, cache.state(files))
    if (kept := cache.read(root, key)) is not None:
        return kept
    classes = tuple(listed["train"])
    read: dict[str, Images | Stream] = {}
    for role, found in listed.items():
        labels = [number for number, paths in enumerate(found.values()) for _ in paths]
        source = Files([file for paths in found.values() for file in paths])
        read[role] = gather(source, torch.tensor(labels), size)
    parts = Parts(read["train"], read.get("validation"), read.get("test"), classes)
    if parts.test is None:
        parts = Parts(parts.train, None, parts.validation, classes)
    cache.write(root, key, parts)
    return parts


def listing(path: Path, name: str) -> dict[str, dict[str, list[Path]]]:
    """Files by part and class, both sorted; a folder without parts is all 'train'."""
    if not path.is_dir():
        raise InputError(
            f"data {name}: there is no folder {path}; give one that holds class folders"
        )
    top = {entry.name: entry for entry in _folders(path, name)}
    roles = {role: top[n] for role, names in ROLES.items() for n in names if n in top}
    if "train" not in roles:
        if roles and len(roles) == len(top):
            raise InputError(
                f"data {name}: {path} has {', '.join(sorted(top))} and no train; name one train"
            )
        roles = {"train": path}
    listed = {}
    for role, place in roles.items():
        classes = _folders(place, name)
        if not classes:
            raise InputError(
                f"data {name}: {place} is empty of class folders; lay the images out as "
                f"{place.name}/CLASS/IMAGE"
            )
        listed[role] = {entry.name: _images(entry, name) for entry in classes}
    for role, found in listed.items():
        if odd := sorted(set(found) ^ set(listed["train"])):
            raise InputError(
                f"data {name}: {roles[role]} and {roles['train']} differ in the class folders "
                f"{', '.join(odd[:5])}; give both the same"
            )
    return listed


def _folders(path: Path, name: str) -> list[Path]:
    try:
        found = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        return sorted(entry for entry in found if entry.is_dir())
    except OSError as error:
        raise _unreadable(path, name, error) from error


def _images(path: Path, name: str) -> list[Path]:
    def stop(error: OSError) -> None:
        raise _unreadable(Path(error.filename or path), name, error) from error

    found = [
        Path(place, file)
        for place, _, files in os.walk(path, onerror=stop, followlinks=True)
        for file in files
        if file.lower().endswith(SUFFIXES) and not file.startswith(".")
    ]
    if not found:
        raise InputError(
            f"data {name}: class folder {path} holds no images ({', '.join(SUFFIXES)}); "
            "fill or remove it"
        )
    return sorted(found)


def _unreadable(path: Path, name: str, error: OSError) -> InputError:
    return InputError(
        f"data {name}: {path} cannot be read ({error.strerror}); check its permissions"
    )
