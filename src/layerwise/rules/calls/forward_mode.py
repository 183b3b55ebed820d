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
    """x, and the direction in which it moves; within `forward_mode`."""
    return forward_ad.make_dual(x, tangent)


def primal(x: Tensor) -> Tensor:
    """What a tensor is, without the direction in which it moves."""
    return forward_ad.unpack_dual(x).primal


def tangent(x: Tensor) -> Tensor:
    """The direction in which a tensor moves; 0 where nothing it depends on does."""
    found = forward_ad.unpack_dual(x).tangent
    return torch.zeros_like(x) if found is None else found


@contextlib.contextmanager
def forward_mode(asked_by: str) -> Iterator[None]:
    """Within, tensors may be dual: whatever is computed of them carries its derivative along.

    Values are those of an ordinary pass, bit for bit. The kernels of attention have no forward-mode
    derivative: theirs is taken of the products that attention is written as.

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
    """Within, attention in eval mode runs as it does where gradients are on, whose bits are not
    those of its kernel for inference."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _moves(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None


@functools.cache
def _load() -> None:
    """PyTorch compiles some of its formulas the first time, and warns of how it does it."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore")
        dual(torch.zeros(()), torch.zeros(()))
