"""Image files in class folders."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from layerwise.data.decode import identify
from layerwise.data.images import Images
from layerwise.data.sources import cache
from layerwise.data.sources.files import LARGEST_BYTES, File, Tree, names_and_sizes, read_file
from layerwise.data.sources.roles import resembles, roles
from layerwise.data.splits import Parts
from layerwise.data.stream import Stream, gather
from layerwise.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
# Images too, but of formats that are not read here. Leaving them out would change the set silently.
OTHER_SUFFIXES = (".avif", ".heic", ".heif", ".jfif", ".jpe", ".jp2", ".jxl", ".tga")


class Files:
    """Image files, read when they are decoded."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, i: int) -> Image.Image:
        # Read whole, so that an image that fails half way leaves no file open.
        return identify(io.BytesIO(read_file(self.paths[i], LARGEST_BYTES)))

    def where(self, i: int) -> str:
        return str(self.paths[i])


class Found(NamedTuple):
    """The images of a class folder, in the order of their paths, and its subfolders with images."""

    files: list[File]
    subfolders: list[Path]


Classes = dict[str, Found]


def folder(path: Path, *, name: str, root: Path, size: int | None) -> Parts:
    """Read `path/{train,val,test}/CLASS/...` or `path/CLASS/...`.

    In the first layout, val and test may be absent; if only val is there, it is the test part. The
    parts may have other usual names, such as `Training` and `dev`. The name of a class is its
    folder's, and its images may lie in subfolders. Hidden files and folders are ignored.

    Args:
        path: the folder.
        name: of the data set as the user gave it, for errors.
        root: the folder of the cache.
        size: height and width in pixels; None if the images have one size.

    Raises:
        InputError: no folder, none of its own, one that cannot be read or is read twice; a layout
            that can be understood in two ways; a single class; a class without images; classes that
            differ between the parts; an image that cannot be read; sizes that differ.
    """
    listed = listing(path, name)
    found = [found for classes in listed.values() for found in classes.values()]
    files = [file for of_class in found for file in of_class.files]
    key = cache.key("folder", str(path.resolve()), size, cache.state(files))
    about = names_and_sizes(path, files)
    if (kept := cache.read(root, key)) is not None:
        return replace(kept, files=about)
    classes = tuple(listed["train"])
    read: dict[str, Images | Stream] = {}
    for role, of_role in listed.items():
        labels = [number for number, here in enumerate(of_role.values()) for _ in here.files]
        source = Files([file.path for here in of_role.values() for file in here.files])
        read[role] = gather(source, torch.tensor(labels), size)
    parts = Parts(read["train"], read.get("validation"), read.get("test"), classes)
    if parts.test is None:
        parts = Parts(parts.train, None, parts.validation, classes)
    cache.write(root, key, parts)
    return replace(parts, files=about)


def listing(path: Path, name: str) -> dict[str, Classes]:
    """The images of each part and class, sorted; a folder without parts is all training part.

    Raises:
        InputError: as `folder`, except for the images themselves.
    """
    if not path.is_dir():
        raise InputError(
            f"data {name}: there is no folder {path}; give one that holds class folders"
        )
    tree = Tree(name)
    top = tree.entries(path, _is_image)
    places = _places(path, name, top.folders)
    listed: dict[str, Classes] = {}
    for role, place in places.items():
        here = top if place == path else tree.entries(place, _is_image)
        if not here.folders:
            raise InputError(
                f"data {name}: {place} has no class folders; arrange the images as "
                f"{place.name}/CLASS/IMAGE"
            )
        if here.files:
            raise InputError(
                f"data {name}: {here.files[0].path} lies next to class folders and has no class; "
                f"move it into one of them, or out of {place}"
            )
        listed[role] = {entry.name: _images(tree, entry) for entry in here.folders}
        _check_level(place, name, listed[role])
    for role, found in listed.items():
        if odd := sorted(set(found) ^ set(listed["train"])):
            raise InputError(
                f"data {name}: {places[role]} and {places['train']} differ in the class folders "
                f"{', '.join(odd[:5])}; give both the same"
            )
    return listed


def _places(path: Path, name: str, folders: list[Path]) -> dict[str, Path]:
    """The folder of each part; `path` itself is the training part if it holds the classes.

    Raises:
        InputError: the names of the folders do not say which of them are parts.
    """
    names = [entry.name for entry in folders]
    found = roles(f"data {name}: {path}", names)
    others = [entry for entry in folders if entry.name not in found.values()]
    if "train" in found:
        if odd := [entry.name for entry in others if _holds_images(entry, name)]:
            raise InputError(
                f"data {name}: {path} holds {', '.join(odd[:5])} next to {found['train']}, which "
                "is the name of a part; move them away, or, if all of them are classes, put them "
                "into a folder named train"
            )
        return {role: path / entry for role, entry in found.items()}
    if found:
        raise InputError(
            f"data {name}: {path} has {', '.join(names[:5])} but no train; name one of "
            "them train, or, if all of them are classes, put them into a folder named train"
        )
    alike = {role: entry for entry in names if (role := resembles(entry)) is not None}
    if "train" in alike and len(alike) > 1:
        raise InputError(
            f"data {name}: {path} holds {', '.join(alike.values())}, which look like parts and not "
            f"like classes; name them {', '.join(alike)}"
        )
    return {"train": path}


def _check_level(place: Path, name: str, classes: Mapping[str, Found]) -> None:
    """Refuse what is probably not a folder of classes but one above it."""
    if len(classes) == 1:
        ((one, found),) = classes.items()
        remedy = f"give {place / one}" if found.subfolders else "give at least two classes"
        raise InputError(
            f"data {name}: {place} holds a single class folder, {one}, so every prediction is "
            f"right; {remedy}"
        )
    subfolders = {
        entry: {folder.name.casefold(): folder.name for folder in found.subfolders}
        for entry, found in classes.items()
        if len(found.subfolders) > 1
    }
    for (a, of_a), (b, of_b) in itertools.combinations(
        itertools.islice(subfolders.items(), 100), 2
    ):
        if len(both := sorted(of_a.keys() & of_b.keys())) > 1:
            raise InputError(
                f"data {name}: {place / a} and {place / b} both hold the folders "
                f"{', '.join(of_a[key] for key in both[:5])}, so these look like the classes; give "
                f"{place / a}, or name {a} and {b} train and test, or give the subfolders of every "
                "class names of its own"
            )


def _images(tree: Tree, path: Path) -> Found:
    """The images of a class folder, those in its subfolders included."""
    here = tree.entries(path, _is_image)
    within = {entry: list(tree.below(entry, _is_image)) for entry in here.folders}
    for entry, files in within.items():
        if not files and _is_image(entry.name):
            raise InputError(
                f"data {tree.name}: {entry} is a folder and not an image; rename or remove it"
            )
    groups = [(file.path.name, [file]) for file in here.files]
    groups += [(entry.name, files) for entry, files in within.items()]
    found = [file for _, files in sorted(groups, key=lambda group: group[0]) for file in files]
    if not found:
        raise InputError(
            f"data {tree.name}: class folder {path} holds no images ({', '.join(SUFFIXES)}); "
            "fill or remove it"
        )
    if odd := [file.path for file in found if not file.path.name.lower().endswith(SUFFIXES)]:
        raise InputError(
            f"data {tree.name}: {odd[0]} is of a format that is not read ({', '.join(SUFFIXES)}); "
            "convert or remove it"
        )
    return Found(found, [entry for entry, files in within.items() if files])


def _holds_images(path: Path, name: str) -> bool:
    return next(Tree(name).below(path, _is_image), None) is not None


def _is_image(name: str) -> bool:
    return name.lower().endswith((*SUFFIXES, *OTHER_SUFFIXES))
