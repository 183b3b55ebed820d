"""Similarity of block outputs (CKA), within a network or between two."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.analysis.frozen import Source, blocks_of, frozen, outputs, reading
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.inputs import first_views
from layerwise.rules.base import Rule

LEAST = 4  # samples that the unbiased estimator needs


def linear_cka(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    """Linear centred kernel alignment of two sets of features of the same samples.

    Kornblith et al. 2019 (arXiv:1905.00414), eq. 2, with K = x x^T and L = y y^T:

        CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

    It does not change when the features are rotated or scaled by one factor. HSIC is the estimator
    of Gretton et al. 2005, whose bias grows with the number of features relative to the number of
    samples; with `unbiased` it is HSIC_1 of Song et al. 2012 (Nguyen et al. 2021,
    arXiv:2010.15327, eq. 3). With K~, L~ the kernels without their diagonals, and n samples:

        n (n - 3) HSIC_1 = tr(K~ L~) + 1'K~1 1'L~1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'K~L~1

    Args:
        x: features of n samples, (n, ...).
        y: other features of the same samples, (n, ...).
        unbiased: use HSIC_1; the result may be below 0.

    Returns:
        (), float64; not a number if features do not vary.

    Raises:
        InputError: `x` and `y` differ in the number of samples; with `unbiased`, there are fewer
            than 4 samples.
    """
    if len(x) != len(y) or (unbiased and len(x) < LEAST):
        raise InputError(
            f"linear_cka(x, y): got {len(x)} and {len(y)} samples; give the same samples"
            + (f", {LEAST} or more" if unbiased else "")
        )
    k, l = _centred(x, unbiased), _centred(y, unbiased)
    return (k @ l) / ((k @ k) * (l @ l)).sqrt()


def cka(
    a: Rule | Blocks, b: Rule | Blocks, loader: Source, loader_b: Source | None = None
) -> Tensor:
    """Linear CKA of every block of `a` with every block of `b`, batch by batch.

    Nguyen, Raghu & Kornblith 2021 (arXiv:2010.15327), eq. 2. HSIC_1 is unbiased, so its mean over
    batches does not depend on their size; all means are over the batches of one pass. The networks
    run in eval mode and are left unchanged.

    Args:
        a: a network, on the device of the loader.
        b: the same network, or another.
        loader: the samples, in an order that does not follow the labels; batches of fewer than 4
            samples are left out.
        loader_b: the same samples as `b` takes them; None if it takes them as `a` does.

    Returns:
        (blocks of a, blocks of b), float64, on the CPU; at most 1, and by chance slightly below 0.

    Raises:
        InputError: no batch has 4 samples; the loaders have different samples.
    """
    left, right = blocks_of(a), blocks_of(b)
    same = a is b and (loader_b is None or loader_b is loader)
    loader = reading(loader, a, "cka(loader)")
    cross = torch.zeros(len(left), len(right), dtype=torch.float64)
    own = [torch.zeros(len(blocks), dtype=torch.float64) for blocks in (left, right)]
    batches = 0
    with frozen(left), frozen(right):
        others = (loader if loader_b is None else reading(loader_b, b, "cka(loader_b)")).epoch(0)
        for (x, y), (x_b, y_b) in zip(loader.epoch(0), others, strict=True):
            if not torch.equal(y, y_b):
                raise InputError(
                    "cka(loader, loader_b): their labels differ; give the same samples in the same "
                    "order, in batches of the same size"
                )
            if len(y) < LEAST:
                continue
            k = _all_centred(a, first_views(x, y))
            l = k if same else _all_centred(b, first_views(x_b, y))
            cross += k @ l.T
            own[0] += k.square().sum(1)
            own[1] += l.square().sum(1)
            batches += 1
    if not batches:
        raise InputError(f"cka(loader): no batch of {LEAST} samples or more; give more samples")
    return cross / (own[0][:, None] * own[1]).sqrt()


def _all_centred(network: Rule | Blocks, x: Tensor) -> Tensor:
    """The centred kernels of all blocks' outputs, (blocks, n^2)."""
    return torch.stack([_centred(h, unbiased=True) for h in outputs(network, x)])


def _centred(x: Tensor, unbiased: bool) -> Tensor:
    """The centred kernel of samples (n, ...) as one vector, (n^2,).

    The inner product of two such vectors is (n - 1)^2 HSIC; with `unbiased`, n (n - 3) HSIC_1.
    """
    x = x.flatten(1).cpu().double()
    x = x - x.mean(0)
    k = x @ x.T  # n n
    if not unbiased:
        return k.flatten()
    n = len(k)
    # U-centring (Szekely & Rizzo 2014): multiplied out, the product gives Song's three terms.
    k.fill_diagonal_(0)
    rows = k.sum(1) / (n - 2)
    k = k - rows[:, None] - rows + rows.sum() / (n - 1)
    return k.fill_diagonal_(0).flatten()
