"""Runs modules without their compiled code."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from layerwise.blocks.intercept import is_compiled


def as_written(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """A context in which compiled parts of `module` run as they are written, uncompiled.

    Compiled code has no second derivatives, may free its buffers in its first backward pass, and
    does not call functions that have been replaced since.
    """
    compiled = any(map(is_compiled, module.modules()))
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
