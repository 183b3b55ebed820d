"""How alike what blocks give is: within a network, and between two."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.analysis.frozen import chain, outputs, reading
from layerwise.blocks import Blocks
from layerwise.data import Loader
from layerwise.errors import InputError
from layerwise.rules.base import Rule

LEAST = 4  # samples of a batch that the unbiased estimator takes


def linear_cka(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    """Linear centred kernel alignment of two sets of features of the same samples.

    Kornblith et al. 2019 (arXiv:1905.00414), eq. 2, with K = x x^T and L = y y^T:

        CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

    It does not change when features are rotated or scaled together. HSIC is that of Gretton et al.
    2005, whose bias grows with the number of features beside that of samples; `unbiased`, it is
    HSIC_1 of Song et al. 2012 (Nguyen et al. 2021, arXiv:2010.15327, eq. 3). With K~, L~ those
    without their diagonals, and n samples:

        n (n - 3) HSIC_1 = tr(K~ L~) + 1'K~1 1'L~1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'K~L~1

    Args:
        x: (n, ...).
        y: (n, ...).
        unbiased: may be below 0.

    Returns:
        (), float64; not a number where features do not vary.

    Raises:
        InputError: other numbers of samples; unbiased, fewer than 4 of them.
    """
    if len(x) != len(y) or (unbiased and len(x) < LEAST):
        raise InputError(
            f"linear_cka(x, y): got {len(x)} and {len(y)} samples; give the same samples"
            + (f", {LEAST} or more" if unbiased else "")
        )
    k, l = _centred(x, unbiased), _centred(y, unbiased)
    return (k @ l) / ((k @ k) * (l @ l)).sqrt()


def cka(
    a: Rule | Blocks, b: Rule | Blocks, loader: Loader, loader_b: Loader | None = None
) -> Tensor:
    """Linear CKA of every block of `a` with every block of `b`, batch by batch.

    Nguyen, Raghu & Kornblith 2021 (arXiv:2010.15327), eq. 2: HSIC_1, which is unbiased, so that its
    mean over batches does not depend on their size; every mean is over the batches of one pass.
    Networks run in eval mode and are left as they were.

    Args:
        a: on the device of the loader.
        b: the same network, or another.
        loader: the samples, in an order that does not follow the labels; batches of fewer than 4
            are left out.
        loader_b: the same samples as `b` takes them, where that is otherwise.

    Returns:
        (blocks of a, blocks of b), float64, on the CPU; up to 1, and by chance a little below 0.

    Raises:
        InputError: no batch of 4 samples; loaders of other samples.
    """
    left, right = chain(a), chain(b)
    same = a is b and loader_b in (None, loader)
    cross = torch.zeros(len(left), len(right), dtype=torch.float64)
    own = [torch.zeros(len(blocks), dtype=torch.float64) for blocks in (left, right)]
    batches = 0
    with reading(left), reading(right):
        others = (loader if loader_b is None else loader_b).epoch(0)
        for (x, y), (x_b, y_b) in zip(loader.epoch(0), others, strict=True):
            if not torch.equal(y, y_b):
                raise InputError(
                    "cka(loader, loader_b): their labels differ; give the same samples in the same "
                    "order, in batches of the same size"
                )
            if len(y) < LEAST:
                continue
            k = _all_centred(a, x[: len(y)])
            l = k if same else _all_centred(b, x_b[: len(y)])
            cross += k @ l.T
            own[0] += k.square().sum(1)
            own[1] += l.square().sum(1)
            batches += 1
    if not batches:
        raise InputError(f"cka(loader): no batch of {LEAST} samples or more; give more samples")
    return cross / (own[0][:, None] * own[1]).sqrt()


def _all_centred(network: Rule | Blocks, x: Tensor) -> Tensor:
    """(blocks, n^2)."""
    return torch.stack([_centred(h, unbiased=True) for h in outputs(network, x)])


def _centred(x: Tensor, unbiased: bool) -> Tensor:
    """The centred kernel of samples (n, ...) as one vector, (n^2,): two of them have n (n - 3)
    HSIC_1, or (n - 1)^2 HSIC, as their inner product."""
    x = x.flatten(1).cpu().double()
    x = x - x.mean(0)
    k = x @ x.T  # n n
    if not unbiased:
        return k.flatten()
    n = len(k)
    # U-centring (Szekely & Rizzo 2014), of which Song's three terms are the product written out.
    k.fill_diagonal_(0)
    rows = k.sum(1) / (n - 2)
    k = k - rows[:, None] - rows + rows.sum() / (n - 1)
    return k.fill_diagonal_(0).flatten()
