"""Weights that a training starts from, and parts of the network that it leaves as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from layerwise.errors import InputError, choices, reason
from layerwise.runs.run import NETWORK

SHOWN = 3  # names in a message


def initialise(
    network: nn.Module, source: str, whole: bool = False, asked_by: str = "--init"
) -> str:
    """Give a network the weights of another one, wherever name and shape are the same. What does
    not fit, such as the output layer for other classes, stays as initialised.

    Args:
        network: changed in place.
        source: the folder of a complete run, or a safetensors file of a network's own names.
        whole: refuse a source that lacks any of the network's tensors.
        asked_by: the option, for errors.

    Returns:
        A line about what was taken.

    Raises:
        InputError: the file cannot be read; nothing in it fits.
    """
    path = Path(source)
    if os.path.isdir(path):  # also of names that no file can have
        path = path / NETWORK
        if not os.path.isfile(path):
            raise InputError(
                f"{asked_by} {source}: it holds no {NETWORK}, which a complete run has; finish the "
                "run, or give a safetensors file"
            )
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{asked_by} {source}: cannot be read: {reason(error)}") from error
    own = network.state_dict()
    taken = [n for n, tensor in own.items() if n in found and found[n].shape == tensor.shape]
    if (whole and len(taken) < len(own)) or not any(own[n].is_floating_point() for n in taken):
        raise InputError(
            f"{asked_by} {source}: {'not every' if taken else 'no'} tensor fits this network; it "
            f"has {_some(own)}, and the file {_some(found)}"
        )
    with torch.no_grad():
        for name in taken:
            own[name].copy_(found[name])
    left = [name for name in own if name not in taken]
    rest = f"; as initialised: {_some(left)}" if left else ""
    return f"{len(taken)} of {len(own)} tensors from {source}{rest}"


def freeze(network: nn.Module, names: Sequence[str]) -> None:
    """Leave modules as they are: their parameters get no gradient. BatchNorm's statistics move.

    Args:
        network: changed in place.
        names: of modules, such as "conv1" or "layer1.0".

    Raises:
        InputError: no such module, or one without parameters; nothing would be left to train.
    """
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules or not name:
            raise InputError(
                f"--freeze {name}: no such module; {choices(name, filter(None, modules))}"
            )
        parameters = list(modules[name].parameters())
        if not parameters:
            raise InputError(f"--freeze {name}: it has no parameters; leave it out")
        for parameter in parameters:
            parameter.requires_grad_(False)
    if names and not any(p.requires_grad for p in network.parameters()):
        raise InputError(f"--freeze {' '.join(names)}: no parameter is left to train; freeze less")


def _some(names: object) -> str:
    listed = list(names)  # type: ignore[call-overload]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
