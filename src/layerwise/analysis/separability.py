"""How much of the data a hyperplane for each class separates, at each block's output."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.analysis.frozen import chain, classes_of, outputs, reading
from layerwise.blocks import Blocks
from layerwise.data import Loader
from layerwise.heads.head import feature_vector
from layerwise.rules.base import Rule

ITERATIONS = 20  # of L-BFGS, between two looks at what is separated


def linear_separability(
    network: Rule | Blocks, loader: Loader, *, pool: int | None = 2, iterations: int = 200
) -> tuple[float, ...]:
    """The share of the samples that a linear classifier can fit, for every block's output h:

        max over W, b of mean over samples of [ argmax_c (W h + b)_c = y ]

    found by multinomial logistic regression without regularisation, on normalised features, in
    float64, all samples at once (L-BFGS from 0). It is 1 where the classes are linearly separable,
    and enough iterations find that out; else it is a lower bound, since the maximum itself is
    NP-hard to find. It is a fact about the samples given, with no other ones held out: that is
    `linear_probe`, which InfoPro (Wang et al. 2021, arXiv:2101.10832) calls linear separability.

    N <= D + 1 samples of D features in general position are separable whatever their labels, and
    for N < 2 (D + 1) most divisions into two classes are (Cover 1965): give many more samples, or a
    smaller `pool`.

    Args:
        network: on the device of the loader.
        loader: the samples; of several views the first.
        pool: average feature maps down to pool x pool (tokens down to `pool`); None keeps every
            position.
        iterations: of L-BFGS, at most.

    Returns:
        The share after each block, 0 to 1.

    Raises:
        InputError: labels that are not one for each sample.
    """
    classes = classes_of("linear_separability", loader)
    features: list[list[Tensor]] = [[] for _ in chain(network)]
    labels = []
    with reading(chain(network)):
        for x, y in loader.epoch(0):
            for found, h in zip(features, outputs(network, x[: len(y)]), strict=True):
                shape = tuple(h.shape[1:])
                layers, _ = feature_vector(shape, (classes,), pool, "linear_separability")
                found.append(nn.Sequential(*layers)(h).cpu().double())
            labels.append(y.cpu())
    y = torch.cat(labels)
    return tuple(_separated(torch.cat(found), y, classes, iterations) for found in features)


def _separated(h: Tensor, y: Tensor, classes: int, iterations: int) -> float:
    """Of features (N, D) and labels (N,)."""
    spread = h.std(0, correction=0)
    h = (h - h.mean(0)) / torch.where(spread > 0, spread, 1)
    weight = h.new_zeros(classes, h.shape[1]).requires_grad_()
    bias = h.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(h, weight, bias), y)
        value.backward()
        return value

    best = 0.0
    for _ in range(0, iterations, ITERATIONS):
        with torch.enable_grad():
            optimizer.step(loss)
        with torch.no_grad():
            right = F.linear(h, weight, bias).argmax(1) == y
        best = max(best, right.double().mean().item())
        if best == 1:
            break
    return best
