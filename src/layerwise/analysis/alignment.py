"""The angle between a rule's gradient and backpropagation's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from layerwise.analysis.angle import degrees_between
from layerwise.blocks.unchanged import unchanged
from layerwise.costs.blocks import without_gradients
from layerwise.inputs import first_views
from layerwise.objectives import Classify, cross_entropy
from layerwise.objectives.batch import identity
from layerwise.objectives.classify import Criterion
from layerwise.rules import Backprop
from layerwise.rules.base import Rule, Scale, alone


@dataclass(frozen=True)
class Alignment:
    """A block's gradient g compared with backpropagation's, g*, over all the block's parameters.

    Attributes:
        angle: between g and g*, degrees: 0 is the same direction, 90 is orthogonal.
        ratio: |g| / |g*|.
    """

    angle: float
    ratio: float


def gradient_alignment(
    rule: Rule,
    x: Tensor,
    y: Tensor,
    *,
    criterion: Criterion | None = None,
    scale: Scale = identity,
) -> tuple[Alignment | None, ...]:
    """Compare the gradient that a rule gives every block with that of backpropagation.

    The feedback alignment papers (Lillicrap et al. 2016, arXiv:1411.0247) measure this angle for
    one layer's error; here it is measured for every block's parameter gradient, which the optimizer
    gets. Both gradients are computed for one batch, in the network's current mode, from the same
    random state and the same buffers; dropout masks agree if the rule draws in the order of the
    forward pass. Heads and other modules outside the network are left out.

    The rule is left unchanged, bit for bit: parameters, `.grad`, buffers (BatchNorm's statistics,
    averages of a rule), modes and the global random state.

    Args:
        rule: with its network.
        x: a batch, as `Rule.backward` takes it; backpropagation gets the first view.
        y: its labels.
        criterion: of backpropagation; by default the criterion of the rule's last block if that
            classifies, otherwise cross entropy.
        scale: of the loss, as in `Rule.backward`, for both.

    Returns:
        One result per block; None if the rule gives the block no gradient, or if one of the two
        gradients is zero.
    """
    backprop = Backprop(rule.blocks, criterion=criterion or _criterion(rule))
    first = first_views(x, y)
    with alone(rule, backprop):
        of_rule = _gradients(rule, lambda: rule.backward(x, y, scale=scale))
        of_backprop = _gradients(rule, lambda: backprop.backward(first, y, scale=scale))
    return tuple(map(_compared, of_rule, of_backprop))


def _criterion(rule: Rule) -> Criterion:
    objective = rule.objectives.get(len(rule.blocks) - 1)
    return objective.criterion if isinstance(objective, Classify) else cross_entropy


def _gradients(rule: Rule, backward: Callable[[], object]) -> list[list[Tensor | None]]:
    """The gradients that `backward` gives the parameters of each block."""
    with without_gradients(rule), unchanged(rule), torch.enable_grad():
        backward()
        return [[p.grad for p in block.parameters()] for block in rule.blocks]


def _compared(of_rule: list[Tensor | None], of_backprop: list[Tensor | None]) -> Alignment | None:
    pairs = [
        (torch.zeros_like(b) if a is None else a, b)
        for a, b in zip(of_rule, of_backprop, strict=True)
        if b is not None
    ]
    if not pairs:
        return None
    # On the CPU: not every device has float64.
    g, wanted = (
        torch.cat([t.flatten().cpu().double() for t in side]) for side in zip(*pairs, strict=True)
    )
    norm, norm_wanted = g.norm(), wanted.norm()
    if not norm or not norm_wanted:
        return None
    return Alignment(degrees_between(g, wanted), (norm / norm_wanted).item())
