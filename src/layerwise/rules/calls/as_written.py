"""Blocks as their Python says, compiled or not."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from layerwise.blocks.intercept import is_compiled


def as_written(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Within, what is compiled in `module` runs as it is written: compiled code has no second
    derivatives, may give its buffers away in its first backward pass, and knows nothing of
    functions that are replaced."""
    compiled = any(map(is_compiled, module.modules()))
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
