"""The variance of a family of target functions: small if no fixed features approximate them all.

M targets, X inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.errors import InputError


def class_variance(phi: Tensor, targets: Tensor, probability: Tensor | None = None) -> float:
    """The mean squared inner product of a function with the members of a family:

        Var(phi) = E_f <phi, f>^2,    <phi, f> = sum_x p_f(x) phi(x) f(x)

    Malach & Shalev-Shwartz 2020 (arXiv:2008.08059). For all parities of n uniform bits it is
    |phi|^2 / 2^n, with |phi|^2 the mean of phi^2.

    Args:
        phi: a function's values at every input, (X,).
        targets: the values of each target, (M, X).
        probability: of the inputs, (X,), or under each target's own distribution, (M, X); by
            default uniform.

    Raises:
        InputError: other shapes.
    """
    if phi.shape != targets.shape[1:]:
        raise InputError(
            f"class_variance: got phi {tuple(phi.shape)} and targets {tuple(targets.shape)}; give "
            "(X,) and (M, X)"
        )
    return (_weighted(targets, probability) @ phi.double()).square().mean().item()


def class_variance_bound(targets: Tensor, probability: Tensor | None = None) -> float:
    """The largest variance of any phi with |phi| <= 1, which bounds that of any phi within [-1, 1].

    |phi| is the root of the mean of phi^2 over the family's mean distribution q. The bound is the
    largest eigenvalue of the matrix with entries

        1/M sum_x p_f(x) f(x) p_g(x) g(x) / q(x)

    For M targets that are orthogonal under one distribution it is 1/M, and it is attained. Fixed
    features are linear in their weights, so if the bound is small, weights of a moderate size reach
    only a small correlation with most targets.

    Args:
        targets: the values of each target, (M, X).
        probability: as in `class_variance`.

    Raises:
        InputError: other shapes.
    """
    weighted_MX = _weighted(targets, probability)
    mean_X = _probability(targets, probability).mean(0)
    scaled_MX = weighted_MX / mean_X.sqrt().clamp_min(1e-150)
    largest = torch.linalg.matrix_norm(scaled_MX, ord=2).square()
    return (largest / len(targets)).item()


def _weighted(targets: Tensor, probability: Tensor | None) -> Tensor:
    """p_f(x) f(x), float64 (M, X)."""
    return _probability(targets, probability) * targets.double()


def _probability(targets: Tensor, probability: Tensor | None) -> Tensor:
    """p_f(x), float64 (M, X)."""
    if targets.dim() != 2:
        raise InputError(f"class_variance: got targets {tuple(targets.shape)}; give (M, X)")
    if probability is None:
        probability = torch.full(targets.shape[1:], 1 / targets.shape[1], dtype=torch.float64)
    if probability.shape not in (targets.shape, targets.shape[1:]):
        raise InputError(
            f"class_variance: got probabilities {tuple(probability.shape)} for targets "
            f"{tuple(targets.shape)}; give (X,) or (M, X)"
        )
    return probability.double().expand(targets.shape)
