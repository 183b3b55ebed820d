"""Autocast on any device. The device "meta" has none: PyTorch's functions refuse it."""

from __future__ import annotations

import contextlib

import torch


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on, on `device`."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context without autocast on `device`, at no cost if it is off anyway."""
    if not is_autocast(device):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
