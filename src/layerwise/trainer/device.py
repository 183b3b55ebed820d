"""A device: Lightning Fabric for it, and the seed of its random numbers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning_fabric import Fabric

from layerwise.errors import InputError, choices, reason
from layerwise.trainer.settings import Precision

FABRIC_PRECISION: dict[Precision, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "auto": "32-true",
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}


def fabric_for(device: str, precision: Precision = "32") -> Fabric:
    """Lightning Fabric on one device.

    Args:
        device: cpu, cuda, cuda:0, mps, ...; auto takes an accelerator if there is one.
        precision: 32, bf16 or 16 (mixed); auto, which a training resolves before, stands for 32.

    Raises:
        InputError: this machine has no such device, or the device does not support this precision.
    """
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    there = ["cpu"]
    if accelerator is not None:
        there += [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
    kind, _, index = device.partition(":")
    if kind == "auto":
        kind = accelerator.type if accelerator is not None else "cpu"
    known = {name.partition(":")[0] for name in there}
    if kind not in known or (index and f"{kind}:{index}" not in there and device != "cpu:0"):
        raise InputError(
            f"--device {device}: this machine has no such device; {choices('', there)}"
        )
    if kind == "cpu" and precision == "16":
        raise InputError(
            f"--precision 16 --device {kind}: float16 needs an accelerator; give bf16 or 32"
        )
    devices: Any = [int(index or 0)] if kind not in ("cpu", "mps") else 1
    try:
        return Fabric(accelerator=kind, devices=devices, precision=FABRIC_PRECISION[precision])
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--precision {precision} --device {device}: {reason(error)}") from error


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
        torch.get_device_module(device).manual_seed(seed)
