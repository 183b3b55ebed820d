"""Image files in class folders."""

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
    """Image files, read when they are decoded."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, i: int) -> Image.Image:
        # Read whole, so that an image that fails half way leaves no file open.
        return Image.open(io.BytesIO(self.paths[i].read_bytes()))

    def where(self, i: int) -> str:
        return str(self.paths[i])


def folder(path: Path, *, name: str, root: Path, size: int | None) -> Parts:
    """Read `path/{train,val,test}/CLASS/...` or `path/CLASS/...`.

    In the first layout, val and test may be absent; if only val is there, it is the test part. The
    name of a class is its folder's, and its images may lie in subfolders. Hidden files are ignored.

    Args:
        path: the folder.
        name: of the data set as the user gave it, for errors.
        root: the folder of the cache.
        size: height and width in pixels; None if the images have one size.

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
    """The files of each part and class, sorted; a folder without parts is all training part."""
    if not path.is_dir():
        raise InputError(
            f"data {name}: there is no folder {path}; give one that holds class folders"
        )
    top = {entry.name: entry for entry in _folders(path, name)}
    roles = {role: top[n] for role, names in ROLES.items() for n in names if n in top}
    if "train" not in roles:
        if roles and len(roles) == len(top):
            raise InputError(
                f"data {name}: {path} has {', '.join(sorted(top))} but no train; name one "
                "of them train"
            )
        roles = {"train": path}
    listed = {}
    for role, place in roles.items():
        classes = _folders(place, name)
        if not classes:
            raise InputError(
                f"data {name}: {place} has no class folders; arrange the images as "
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
