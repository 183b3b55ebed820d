"""Forward-mode differentiation of any module."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

from layerwise.errors import InputError, reason
from layerwise.rules.calls.attention import attention_by_formula


def dual(x: Tensor, tangent: Tensor) -> Tensor:
    """x with the tangent in whose direction it moves, of x's shape; use it in `forward_mode`."""
    return forward_ad.make_dual(x, tangent)


def primal(x: Tensor) -> Tensor:
    """The value of a tensor, without its tangent."""
    return forward_ad.unpack_dual(x).primal


def tangent(x: Tensor) -> Tensor:
    """The tangent of a tensor, of its shape; 0 if the tensor does not depend on a dual one."""
    found = forward_ad.unpack_dual(x).tangent
    return torch.zeros_like(x) if found is None else found


@contextlib.contextmanager
def forward_mode(asked_by: str) -> Iterator[None]:
    """A context for dual tensors: everything computed from them carries its derivative along.

    Values are those of an ordinary pass, bit for bit. The kernels of attention have no forward-mode
    derivative; theirs is taken from attention's plain formula.

    Args:
        asked_by: the rule, for errors.

    Raises:
        InputError: an operation that has no forward-mode derivative in PyTorch.
    """
    _load()
    by_formula = attention_by_formula(
        primal, lambda y, moving: dual(y, tangent(moving).to(y.dtype)), asked=_moves
    )
    try:
        with forward_ad.dual_level(), as_in_training(), by_formula:
            yield
    except NotImplementedError as error:
        raise InputError(
            f"{asked_by}: {reason(error)}; build the network without that operation, or take "
            "SPSA, which needs no derivatives"
        ) from error


@contextlib.contextmanager
def as_in_training() -> Iterator[None]:
    """A context in which attention in eval mode runs the same kernel as with gradients on.

    Its kernel for inference gives other bits.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _moves(x: Tensor) -> bool:
    """Whether a tensor has a tangent."""
    return forward_ad.unpack_dual(x).tangent is not None


@functools.cache
def _load() -> None:
    """Let PyTorch compile some of its formulas, which it does at the first use, with a warning."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore")
        dual(torch.zeros(()), torch.zeros(()))
