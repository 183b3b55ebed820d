"""Weights that a training starts from, and parts of the network that it leaves as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from layerwise import hub
from layerwise.arguments import WIDEST, shortened
from layerwise.errors import InputError, choices, reason
from layerwise.models.weights import take
from layerwise.models.zoo import PRETRAINED, weights
from layerwise.runs.run import NETWORK


def initialise(
    network: nn.Module, config: Mapping[str, Any], shape: tuple[int, ...], num_classes: int
) -> list[str]:
    """Give a network the weights that its training starts from.

    Args:
        network: changed in place.
        config: its `init` is the folder of a complete run, a safetensors file of a network's own
            names, or `hf:NAME` of a repository on the Hugging Face hub; its `model` may be
            `pretrained`.
        shape, num_classes: of the network.

    Returns:
        A line about each.

    Raises:
        InputError: a file cannot be read; nothing in it fits.
    """
    said, model, source = [], config["model"], config.get("init")
    if model["name"] in PRETRAINED and model.get("pretrained"):
        with torch.random.fork_rng(devices=[]):
            found, where = weights(model["name"], shape, num_classes, model["arch"])
        said.append(f"--model.pretrained: {take(network, found, where)}")
    if source is not None:
        said.append(f"--init: {take(network, tensors_of(source), f'--init {source}')}")
    return [line.replace("from --init ", "from ") for line in said]


def tensors_of(source: str, asked_by: str = "--init") -> dict[str, Tensor]:
    """The tensors of a run, of a file, or of a repository of the hub.

    Args:
        source: as the option `init` names it.
        asked_by: for errors.

    Raises:
        InputError: they cannot be read.
    """
    path = Path(source)
    if source.startswith("hf:"):
        path = _downloaded(source)
    elif os.path.isdir(path):  # also of names that no file can have
        path = path / NETWORK
        if not os.path.isfile(path):
            raise InputError(
                f"{asked_by} {source}: it holds no {NETWORK}, which a complete run has; finish the "
                "run, or give a safetensors file"
            )
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{asked_by} {source}: cannot be read: {reason(error)}") from error


def _downloaded(source: str) -> Path:
    """The safetensors file of a repository, from the hub or its cache on this machine."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise InputError(
            f"--init {source}: huggingface_hub is not installed; pip install 'layerwise[hub]'"
        ) from error
    answers = hub.reachable()
    try:
        with hub.asked(answers):
            return Path(hf_hub_download(source.removeprefix("hf:"), NETWORK))
    except Exception as error:  # of names, networks and files
        raise InputError(
            f"--init {source}: there is no {NETWORK} of it here or on the hub: {reason(error)}; "
            f"{hub.remedy(answers)}"
        ) from error


def lora(network: nn.Module, rank: int) -> None:
    """Add low-rank adapters to a network, which alone are trained, besides the output layer.

    Hu et al. 2021 (arXiv:2106.09685): W x becomes W x + B A x, where A is random and B zero, for
    every linear layer and convolution except the last of them, with the library peft. The factor
    alpha / r is 1. For other layers or factors write a function that makes your network.

    Args:
        network: changed in place.
        rank: of the adapters.

    Raises:
        InputError: peft is not installed; a rank below 1 or above 10,000; no such layer.
    """
    if not 1 <= rank <= WIDEST:
        raise InputError(
            f"--lora {shortened(rank)}: give a rank of at least 1 and at most {WIDEST}, or null"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError(
            f"--lora {rank}: peft is not installed; pip install 'layerwise[peft]'"
        ) from error
    kinds = ("Linear", "Conv2d", "Conv1D")
    layers = [n for n, m in network.named_modules() if type(m).__name__ in kinds]
    if len(layers) < 2:
        raise InputError(f"--lora {rank}: the network has no linear layer before its output layer")
    options = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers[:-1])
    try:
        inject_adapter_in_model(options, network)
    except ValueError as error:
        raise InputError(
            f"--lora {rank}: peft does not take the network: {reason(error)}"
        ) from error
    network.get_submodule(layers[-1]).requires_grad_(True)


def freeze(network: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Leave modules as they are: their parameters get no gradient.

    Args:
        network: changed in place.
        names: of modules, such as "conv1" or "layer1.0".

    Returns:
        Those within these modules that have running statistics (BatchNorm) or other buffers of real
        numbers. They stay unchanged in eval mode, in which a rule keeps them (`Rule.kept_in_eval`).

    Raises:
        InputError: no such module, or one without parameters.
    """
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules or not name:
            raise InputError(
                f"--freeze {name}: no such module; {choices(name, filter(None, modules))}"
            )
        if next(modules[name].parameters(), None) is None:
            raise InputError(f"--freeze {name}: it has no parameters; leave it out")
        modules[name].requires_grad_(False)
    within = {m for name in names for m in modules[name].modules()}
    return [m for m in modules.values() if m in within and _has_statistics(m)]


def _has_statistics(module: nn.Module) -> bool:
    return any(b.is_floating_point() for b in module.buffers(recurse=False))
