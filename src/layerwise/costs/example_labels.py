"""Batches and labels for the steps whose cost is measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from layerwise.rules.base import Rule


def example_labels(
    rule: Rule, rows: int, labels: Tensor | None, device: torch.device | str
) -> Tensor:
    """Labels that fit the example with which a rule's network was cut.

    Args:
        rule: the rule, whose blocks know their shapes.
        rows: number of samples.
        labels: a batch of the labels that the rule is trained with; None: class numbers. They are
            needed for a criterion of your own, which may read labels of any kind.
        device: where the labels are.

    Returns:
        (rows, ...): class 0 everywhere for the default criterion; otherwise the given ones, again
        and again, or zeros where a sequence is as long as the example and not as the given labels.
    """
    assert rule.blocks.shapes is not None
    shape = rule.blocks.shapes[-1]
    if labels is None or rule.check.default_criterion:
        return torch.zeros(rows, *shape[:-1], dtype=torch.long, device=device)
    if len(shape) == 2 and labels.dim() > 1 and labels.shape[1] != shape[0]:
        return labels.new_zeros(rows, shape[0], *labels.shape[2:]).to(device)
    return labels[torch.arange(rows) % len(labels)].to(device)


def example_batch(
    shape: Sequence[int], num_classes: int, rows: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Random images of the shape (C, H, W) with a label each, or tokens (T,) with one each."""
    if len(shape) == 1:
        x, y = torch.randint(0, num_classes, (2, rows, *shape), device=device)
        return x, y
    x = torch.randn(rows, *shape, device=device)
    return x, torch.randint(0, num_classes, (rows,), device=device)
