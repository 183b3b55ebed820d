"""Data sets that torchvision downloads, verifies and reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.data.images import Images
from layerwise.data.sources.folder import folder
from layerwise.data.splits import Part, Parts
from layerwise.data.stream import Stream
from layerwise.errors import InputError

# ImageNet is evaluated by scaling the shorter side to 256 pixels and cutting out the central 224;
# other sizes have the same ratio.
IMAGENET_MARGIN = 256 / 224

Reader = Callable[[Any], tuple[Any, Any, tuple[str, ...]]]  # -> images NHWC, labels, classes


def _idx(found: Any) -> tuple[Any, Any, tuple[str, ...]]:
    return found.data.unsqueeze(-1), found.targets, tuple(found.classes)


def _cifar(found: Any) -> tuple[Any, Any, tuple[str, ...]]:
    return found.data, found.targets, tuple(found.classes)


def _svhn(found: Any) -> tuple[Any, Any, tuple[str, ...]]:
    return found.data.transpose(0, 2, 3, 1), found.labels, tuple(str(digit) for digit in range(10))


def _stl10(found: Any) -> tuple[Any, Any, tuple[str, ...]]:
    return found.data.transpose(0, 2, 3, 1), found.labels, tuple(found.classes)


# torchvision's class, the argument that selects train or test, how it is read, where its files lie.
# CIFAR's batches are pickles. torchvision opens them only if their checksums match its own, so only
# the authors' published files are ever unpickled. Nothing else here is a pickle.
SETS: dict[str, tuple[str, str, Reader, str]] = {
    "mnist": ("MNIST", "train", _idx, "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"),
    "fashion-mnist": (
        "FashionMNIST",
        "train",
        _idx,
        "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    ),
    "cifar10": (
        "CIFAR10",
        "train",
        _cifar,
        "cifar-10-batches-py/ (cifar-10-python.tar.gz, unpacked)",
    ),
    "cifar100": (
        "CIFAR100",
        "train",
        _cifar,
        "cifar-100-python/ (cifar-100-python.tar.gz, unpacked)",
    ),
    "svhn": ("SVHN", "split", _svhn, "{train,test}_32x32.mat"),
    "stl10": ("STL10", "split", _stl10, "stl10_binary/ (stl10_binary.tar.gz, unpacked)"),
}


def load_set(name: str, root: Path, download: bool) -> Parts:
    """Both official parts of a set, in memory.

    Raises:
        InputError: the set is not in `root` and cannot be downloaded, or its files are damaged.
    """
    from torchvision import datasets  # slow to import, and only needed here

    kind, selector, reader, files = SETS[name]
    read = {}
    for split in ("train", "test"):
        chosen = {"train": split == "train"} if selector == "train" else {"split": split}
        try:
            found = getattr(datasets, kind)(root, download=download, **chosen)
            read[split] = reader(found)
        except Exception as error:  # readers, archives and the network raise many kinds of errors
            said = " ".join(str(error).split())[:160]
            raise InputError(
                f"data {name}: not downloaded and not readable in {root} "
                f"({type(error).__name__}: {said}); without a network, place {root}/{files}"
            ) from error
    classes = read["train"][2]
    return Parts(_images(*read["train"][:2]), None, _images(*read["test"][:2]), classes)


def _images(images: Any, labels: Any) -> Images:
    if not isinstance(images, Tensor):
        images = torch.from_numpy(np.ascontiguousarray(images))
    return Images(images.contiguous(), torch.as_tensor(np.asarray(labels)).long())


def imagenet(root: Path, size: int) -> Parts:
    """ImageNet-1k from `root/imagenet`: class folders under train and val, or the archives.

    It is streamed. Its validation part is the test part, because its own test part has no labels.

    Raises:
        InputError: neither folders nor archives are there; its licence forbids to download it.
    """
    place = root / "imagenet"
    for split in ("train", "val"):
        if (place / split).is_dir():
            continue
        from torchvision import datasets

        try:
            datasets.ImageNet(place, split)  # unpacks the archive into class folders
        except Exception as error:  # archives and their parser raise many kinds of errors
            said = " ".join(str(error).split())[:160]
            raise InputError(
                f"data imagenet: no {place / split} ({said}); place the class folders as "
                f"{place}/{{train,val}}/CLASS/IMAGE, or ILSVRC2012_img_{{train,val}}.tar and "
                f"ILSVRC2012_devkit_t12.tar.gz in {place}"
            ) from error
    parts = folder(place, name="imagenet", root=root, size=size)

    def scaled(part: Part | None) -> Part | None:
        return replace(part, margin=IMAGENET_MARGIN) if isinstance(part, Stream) else part

    return replace(
        parts,
        train=scaled(parts.train) or parts.train,
        validation=None,
        test=scaled(parts.test),
    )
