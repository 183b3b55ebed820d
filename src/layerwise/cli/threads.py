"""The number of CPU threads, for commands that measure."""

from __future__ import annotations

import os

import torch

from layerwise.errors import InputError


def set_threads(threads: int | None) -> None:
    """Set the number of threads in which PyTorch computes; None keeps PyTorch's default.

    Raises:
        InputError: fewer than one; so many that the library of threads would end the process.
    """
    if threads is None:
        return
    most = max(256, 4 * (os.cpu_count() or 1))
    if not 1 <= threads <= most:
        raise InputError(f"--threads {threads}: give 1 to {most}")
    torch.set_num_threads(threads)
