"""Labels for the steps whose cost is measured."""

from __future__ import annotations

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
