"""The device that a name stands for on this machine, and its random numbers."""

from __future__ import annotations

import torch

from layerwise.errors import InputError, choices


def device_for(name: str) -> torch.device:
    """The device of this name.

    Args:
        name: cpu, cuda, cuda:0, mps, ...; auto takes an accelerator if there is one.

    Raises:
        InputError: this machine has no such device.
    """
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    there = ["cpu"]
    if accelerator is not None:
        there += [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
    kind, _, index = name.partition(":")
    if kind == "auto":
        kind = accelerator.type if accelerator is not None else "cpu"
    known = {one.partition(":")[0] for one in there}
    if kind not in known or (index and f"{kind}:{index}" not in there and name != "cpu:0"):
        raise InputError(f"--device {name}: this machine has no such device; {choices('', there)}")
    return torch.device("cpu") if kind == "cpu" else torch.device(kind, int(index or 0))


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed PyTorch's random numbers on the CPU and on a device: `torch.manual_seed` without the
    devices that are not used, which takes twenty times as long.

    Args:
        device: that of the training.
        seed: up to 2^63 - 1.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
