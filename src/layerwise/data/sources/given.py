"""A data set that a function of your own gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from layerwise.data.images import Images
from layerwise.data.splits import Parts, Splits
from layerwise.errors import InputError

ROLES = ("train", "validation", "test")


def parts_of(found: Any) -> Parts:
    """The parts of a set.

    Args:
        found: `Splits` or `Parts`; or a mapping with `train`, and any of `validation`, `test` and
            `classes` (names). A part is `Images`, or (images, labels): images uint8, (N, H, W, C)
            or (N, C, H, W), where the axis of one or three channels tells which, or (N, H, W) for
            grey ones; labels classes, (N,), or real numbers, (N,) or (N, D).

    Raises:
        InputError: something else.
    """
    if isinstance(found, Splits):
        return Parts(found.train, found.validation, found.test, found.classes)
    if isinstance(found, Parts):
        return found
    if not isinstance(found, Mapping) or "train" not in found:
        raise InputError(
            f"it gives {type(found).__name__}; give a mapping with train, and any of validation, "
            "test and classes"
        )
    if unknown := [str(key) for key in found if key not in (*ROLES, "classes")]:
        raise InputError(f"it gives {', '.join(unknown)}; give train, validation, test and classes")
    parts = {role: _images(found[role], role) for role in ROLES if found.get(role) is not None}
    classes = found.get("classes")
    if classes is None:
        labels = [part.labels for part in parts.values() if len(part)]
        real = labels[0].dim() == 2
        classes = range(labels[0].shape[1] if real else max(int(y.max()) for y in labels) + 1)
    names = tuple(map(str, classes))
    return Parts(parts["train"], parts.get("validation"), parts.get("test"), names)


def _images(part: Any, role: str) -> Images:
    if isinstance(part, Images):
        return part
    if not isinstance(part, Sequence) or len(part) != 2:
        raise InputError(f"{role}: {type(part).__name__}; give (images, labels)")
    images, labels = torch.as_tensor(part[0]), torch.as_tensor(part[1])
    if labels.is_floating_point() or labels.dim() == 2:
        labels = labels.float().view(len(labels), -1)
    else:
        labels = labels.long()
    if images.dim() == 3:
        images = images[..., None]
    if images.dim() == 4 and images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.permute(0, 2, 3, 1)
    return Images(_bytes(images, role), labels)


def _bytes(images: Tensor, role: str) -> Tensor:
    if images.dtype != torch.uint8:
        raise InputError(f"{role}: images are {images.dtype}; give uint8, 0 to 255")
    return images.contiguous()
