"""Weights of one network for another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from layerwise.errors import InputError

SHOWN = 3  # names in a message


def take(
    network: nn.Module, found: Mapping[str, Tensor], source: str, *, whole: bool = False
) -> str:
    """Give a network the weights of another one, wherever name and shape are the same. What does
    not fit, such as the output layer for other classes, stays as initialised.

    Layers with adapters of peft are found under the layer's own name, and so is what is named
    differently only because one network is the other's body (`base_model_prefix` of transformers).

    Args:
        network: changed in place.
        found: the other network's parameters and buffers.
        source: where they are from, for messages.
        whole: refuse a source that lacks any of the network's tensors.

    Returns:
        A line about what was taken.

    Raises:
        InputError: nothing in it fits; with `whole`, not everything does.
    """
    own = {name: t for name, t in network.state_dict().items() if ".lora_" not in name}
    prefix = str(getattr(network, "base_model_prefix", ""))
    taken: dict[str, Tensor] = {}
    for name, tensor in own.items():
        there = (found.get(other) for other in _names(name, prefix))
        fitting = (t for t in there if t is not None and t.shape == tensor.shape)
        if (match := next(fitting, None)) is not None:
            taken[name] = match
    if (whole and len(taken) < len(own)) or not any(own[n].is_floating_point() for n in taken):
        raise InputError(
            f"{source}: {'not every' if taken else 'no'} tensor fits this network; it has "
            f"{some(own)}, and the file {some(found)}"
        )
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    left = [name for name in own if name not in taken]
    rest = f"; as initialised: {some(left)}" if left else ""
    return f"{len(taken)} of {len(own)} tensors from {source}{rest}"


def _names(name: str, prefix: str) -> Iterator[str]:
    """What a tensor may be called in another network."""
    yield name
    name = name.replace(".base_layer.", ".")
    yield name
    if prefix:
        yield name.removeprefix(f"{prefix}.")
        yield f"{prefix}.{name}"


def some(names: Iterator[str] | Mapping[str, object] | list[str]) -> str:
    """The first of some names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
