"""How strongly single features of blocks' outputs are correlated with the label."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.analysis.frozen import Source, blocks_of, classes_of, frozen, outputs, reading
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.inputs import first_views
from layerwise.rules.base import Rule


def label_correlation(network: Rule | Blocks, loader: Source) -> tuple[Tensor, ...]:
    """The correlation of every feature of every block's output with the label, from 0 to 1.

    Malach & Shalev-Shwartz 2019 (arXiv:1910.11923) call it local correlation: a tree of gates is
    learned layer by layer if every gate is correlated with the label. See `correlation_ratio`; a
    feature is one number of the output, at one position. The network runs in eval mode and is left
    unchanged.

    Args:
        network: on the device of the loader.
        loader: the samples; if a batch has several views, the first is used.

    Returns:
        For each block a correlation per feature, float64 (D,).

    Raises:
        InputError: there is not one label per sample.
    """
    loader = reading(loader, network, "label_correlation(loader)")
    classes_of("label_correlation", loader)
    found: list[list[Tensor]] = [[] for _ in blocks_of(network)]
    labels = []
    with frozen(blocks_of(network)):
        for x, y in loader.epoch(0):
            for of_block, h in zip(found, outputs(network, first_views(x, y)), strict=True):
                of_block.append(h.flatten(1).cpu())
            labels.append(y.cpu())
    y = torch.cat(labels)
    return tuple(correlation_ratio(torch.cat(of_block), y) for of_block in found)


def correlation_ratio(values: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The correlation ratio of numbers with a label:

        eta = sqrt(Var[E[v | y]] / Var[v])

    With two classes it is the size of Pearson's correlation. It is 0 for numbers that are constant.

    Args:
        values: (N, D).
        labels: class numbers, (N,).
        weights: of the samples, (N,), such as probabilities; None for equal ones.

    Returns:
        float64 (D,), from 0 to 1.

    Raises:
        InputError: other shapes.
    """
    if values.dim() != 2 or labels.shape != values.shape[:1]:
        raise InputError(
            f"correlation_ratio: got values {tuple(values.shape)} and labels "
            f"{tuple(labels.shape)}; give (N, D) and (N,)"
        )
    v_ND = values.double()
    w_N = torch.ones(len(v_ND), dtype=torch.float64) if weights is None else weights.double()
    w_N = w_N / w_N.sum()
    v_ND = v_ND - w_N @ v_ND
    in_class_NC = torch.nn.functional.one_hot(labels.long()).double() * w_N[:, None]
    share_C1 = in_class_NC.sum(0)[:, None]
    means_CD = in_class_NC.T @ v_ND / share_C1.clamp_min(1e-300)
    between, total = (share_C1 * means_CD.square()).sum(0), w_N @ v_ND.square()
    return torch.where(total > 0, between / total, 0).clamp(0, 1).sqrt()
