"""Networks of other libraries by their names there, with pretrained weights where these are asked
for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from layerwise import hub
from layerwise.arguments import checks_arguments
from layerwise.errors import InputError, choices, reason
from layerwise.models.building_blocks import Shape, Window, check_sizes
from layerwise.models.weights import take

log = logging.getLogger(__name__)
# The networks with an option `pretrained`.
PRETRAINED = ("timm", "torchvision", "transformers")


@checks_arguments
def torchvision(
    shape: Shape = (3, 224, 224),
    num_classes: int = 1000,
    arch: str = "resnet50",
    pretrained: bool = False,
) -> nn.Module:
    """A classification network of torchvision.

    Args:
        shape: of an image, (C, H, W); C = 3.
        num_classes: number of classes.
        arch: a name in `torchvision.models`.
        pretrained: load the library's default weights, except an output layer of other classes,
            which stays as initialised.

    Raises:
        InputError: there is no such network; the images do not have 3 channels; there are no
            weights.
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
    network = tv.models.get_model(arch, weights=None, num_classes=num_classes, **options)
    return _trained(network, pretrained, "torchvision", shape, num_classes, arch)


@checks_arguments
def timm(
    shape: Shape = (3, 224, 224),
    num_classes: int = 1000,
    arch: str = "resnet50",
    pretrained: bool = False,
) -> nn.Module:
    """A network of timm (needs `pip install layerwise[timm]`).

    Args:
        shape: of an image, (C, H, W).
        num_classes: number of classes.
        arch: a name in `timm.list_models()`.
        pretrained: load the library's weights, which timm adapts to the images' size and number of
            channels; an output layer of other classes stays as initialised.

    Raises:
        InputError: timm is not installed; there is no such network, or it has no weights.
    """
    check_sizes("timm", shape, num_classes)
    network = _of_timm(shape, num_classes, arch)
    return _trained(network, pretrained, "timm", shape, num_classes, arch)


def _of_timm(shape: Shape, num_classes: int, arch: str, pretrained: bool = False) -> nn.Module:
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
    options |= {"pretrained": pretrained, "num_classes": num_classes}
    try:
        return library.create_model(arch, img_size=shape[1:], **options)
    except TypeError:  # networks without a fixed input size do not take img_size
        return library.create_model(arch, **options)


@checks_arguments
def transformers(
    shape: Shape | Window = (3, 224, 224),
    num_classes: int = 1000,
    arch: str = "google/vit-base-patch16-224",
    pretrained: bool = False,
) -> nn.Module:
    """A network of transformers (needs `pip install layerwise[transformers]`): for images a
    classifier, for text a causal language model, whose embedding and output layer are not tied.

    Args:
        shape: of an image, (C, H, W), or of a window of text, (T,).
        num_classes: number of classes, or of tokens.
        arch: a name on the Hugging Face hub, or a folder with a `config.json`.
        pretrained: load its weights, from safetensors; layers of another shape stay as initialised:
            the output layer of other classes, the embedding of other tokens.

    Raises:
        InputError: transformers is not installed; there is no such network, or it has no weights.
    """
    if len(shape) == 3:
        check_sizes("transformers", shape, num_classes)
    library = _of_transformers(arch)
    with _loading(f"transformers(arch={arch!r})", arch):
        config = library.AutoConfig.from_pretrained(arch)
        if len(shape) == 3:
            config.num_labels = num_classes
            config.image_size, config.num_channels = shape[1], shape[0]
        else:
            config.vocab_size, config.tie_word_embeddings = num_classes, False
            config.use_cache = False
            config.bos_token_id = config.eos_token_id = config.pad_token_id = None
        network = _auto(library, shape).from_config(config)
    return _trained(network, pretrained, "transformers", shape, num_classes, arch)


def _of_transformers(arch: str) -> Any:
    try:
        import transformers as library
    except ImportError as error:
        raise InputError(
            f"transformers(arch={arch!r}): transformers is not installed; pip install "
            "'layerwise[transformers]'"
        ) from error
    return library


def _auto(library: Any, shape: tuple[int, ...]) -> Any:
    images = len(shape) == 3
    return library.AutoModelForImageClassification if images else library.AutoModelForCausalLM


@contextmanager
def _loading(call: str, arch: str | None = None) -> Iterator[None]:
    """Turn whatever a library raises while it looks for files into one line; `arch` is a name on
    the hub, or a folder."""
    answers = arch is None or os.path.isdir(arch)
    try:
        answers = answers or hub.reachable()
        with hub.asked(answers):
            yield
    except InputError:
        raise
    except Exception as error:  # of networks, file formats, hubs and their libraries
        do = "check the network" if arch is None else hub.remedy(answers)
        raise InputError(f"{call}: cannot be loaded: {reason(error)}; {do}") from error


def weights(
    library: str, shape: tuple[int, ...], num_classes: int, arch: str
) -> tuple[Mapping[str, Tensor], str]:
    """The pretrained weights of a network, as far as they were trained, and where they are from.

    Args:
        library: one of `PRETRAINED`.
        shape, num_classes, arch: as of the library's networks here.

    Raises:
        InputError: there are none, or they cannot be loaded.
    """
    call = f"{library}(arch={arch!r}, pretrained=True)"
    with _loading(call, None if library == "torchvision" else arch):
        found: Mapping[str, Tensor]
        if library == "torchvision":
            import torchvision as tv

            default = tv.models.get_model_weights(arch).DEFAULT  # type: ignore[attr-defined]
            found = default.get_state_dict(progress=False, check_hash=True, weights_only=True)
        elif library == "timm":
            network = _of_timm(shape, num_classes, arch, pretrained=True)  # type: ignore[arg-type]
            about: Any = network.pretrained_cfg
            heads = about.get("classifier") or ()
            heads = (heads,) if isinstance(heads, str) else tuple(heads)
            new = tuple(f"{h}." for h in heads) if num_classes != about["num_classes"] else ()
            found = {k: v for k, v in network.state_dict().items() if not k.startswith(new)}
        else:
            network, info = _auto(_of_transformers(arch), shape).from_pretrained(
                arch, use_safetensors=True, output_loading_info=True
            )
            missing = {*info["missing_keys"]}
            found = {k: v for k, v in network.state_dict().items() if k not in missing}
    return found, f"{library} {arch}"


def _trained(network: nn.Module, pretrained: bool, library: str, *of: Any) -> nn.Module:
    if pretrained:
        log.info("%s", take(network, *weights(library, *of)))
    return network
