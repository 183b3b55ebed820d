"""Linear separability: the share of samples that a linear classifier can fit, for each block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.analysis.frozen import Source, blocks_of, classes_of, frozen, outputs, reading
from layerwise.blocks import Blocks
from layerwise.heads.head import feature_vector
from layerwise.inputs import first_views
from layerwise.rules.base import Rule

ITERATIONS = 20  # of L-BFGS, between two measurements


def linear_separability(
    network: Rule | Blocks, loader: Source, *, pool: int | None = 2, iterations: int = 200
) -> tuple[float, ...]:
    """The share of samples that a linear classifier can fit, for every block's output h:

        max over W, b of mean over samples of [ argmax_c (W h + b)_c = y ]

    It is found by multinomial logistic regression without regularisation, on normalised features,
    in float64, with all samples at once (L-BFGS from zero). If the classes are linearly separable,
    the result is 1 after enough iterations. Otherwise it is a lower bound, because the maximum
    itself is NP-hard to find. It describes the given samples; nothing is held out. `linear_probe`
    measures held-out samples, which InfoPro (Wang et al. 2021, arXiv:2101.10832) calls linear
    separability.

    N <= D + 1 samples with D features in general position are separable whatever their labels, and
    for N < 2 (D + 1) most divisions into two classes are (Cover 1965). So give many more samples,
    or a smaller `pool`.

    Args:
        network: on the device of the loader.
        loader: the samples; if a batch has several views, the first is used.
        pool: average feature maps down to pool x pool (tokens down to `pool`); None keeps every
            position.
        iterations: of L-BFGS, at most.

    Returns:
        The share for each block, 0 to 1.

    Raises:
        InputError: there is not one label per sample.
    """
    loader = reading(loader, network, "linear_separability(loader)")
    classes = classes_of("linear_separability", loader)
    features: list[list[Tensor]] = [[] for _ in blocks_of(network)]
    labels = []
    with frozen(blocks_of(network)):
        for x, y in loader.epoch(0):
            for found, h in zip(features, outputs(network, first_views(x, y)), strict=True):
                shape = tuple(h.shape[1:])
                layers, _ = feature_vector(shape, (classes,), pool, "linear_separability")
                found.append(nn.Sequential(*layers)(h).cpu().double())
            labels.append(y.cpu())
    y = torch.cat(labels)
    return tuple(_separated(torch.cat(found), y, classes, iterations) for found in features)


def _separated(h: Tensor, y: Tensor, classes: int, iterations: int) -> float:
    """The largest share found for features (N, D) and labels (N,)."""
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
