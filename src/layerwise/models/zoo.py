"""Networks of other libraries by their names there, without pretrained weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from layerwise.arguments import checks_arguments
from layerwise.errors import InputError, choices
from layerwise.models.building_blocks import Shape, check_sizes


@checks_arguments
def torchvision(
    shape: Shape = (3, 224, 224), num_classes: int = 1000, arch: str = "resnet50"
) -> nn.Module:
    """A classification network of torchvision.

    Args:
        shape: of an image, (C, H, W); C = 3.
        num_classes: number of classes.
        arch: a name in `torchvision.models`.

    Raises:
        InputError: there is no such network; the images do not have 3 channels.
    """
    check_sizes("torchvision", shape, num_classes)
    import torchvision as tv

    known = tv.models.list_models(module=tv.models)
    if arch not in known:
        raise InputError(f"torchvision(arch={arch!r}): no such model; {choices(arch, known)}")
    if shape[0] != 3:
        raise InputError(
            f"torchvision(shape={tuple(shape)}): its networks take 3 channels; repeat the image's "
            "channel, or use timm, whose networks take any number of channels"
        )
    options: dict[str, Any] = {"image_size": shape[1]} if arch.startswith("vit_") else {}
    options |= {"input_size": shape[1:]} if arch.startswith("maxvit") else {}
    if arch in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    return tv.models.get_model(arch, weights=None, num_classes=num_classes, **options)


@checks_arguments
def timm(
    shape: Shape = (3, 224, 224), num_classes: int = 1000, arch: str = "resnet50"
) -> nn.Module:
    """A network of timm (needs `pip install layerwise[timm]`).

    Args:
        shape: of an image, (C, H, W).
        num_classes: number of classes.
        arch: a name in `timm.list_models()`.

    Raises:
        InputError: timm is not installed; there is no such network.
    """
    check_sizes("timm", shape, num_classes)
    try:
        import timm as library
    except ImportError as error:
        raise InputError(
            f"timm(arch={arch!r}): timm is not installed; pip install 'layerwise[timm]'"
        ) from error
    if not library.is_model(arch):
        known = library.list_models()
        raise InputError(f"timm(arch={arch!r}): no such model; {choices(arch, known)}")
    options: dict[str, Any] = {"in_chans": shape[0]} if shape[0] != 3 else {}
    try:
        return library.create_model(
            arch, pretrained=False, num_classes=num_classes, img_size=shape[1:], **options
        )
    except TypeError:  # networks without a fixed input size do not take img_size
        return library.create_model(arch, pretrained=False, num_classes=num_classes, **options)
