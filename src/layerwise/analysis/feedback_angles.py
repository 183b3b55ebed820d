"""How well the matrices of the way back are aligned with the weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from layerwise.analysis.angle import degrees_between
from layerwise.errors import InputError
from layerwise.rules.base import Rule
from layerwise.rules.families.feedback import FeedbackRule


def feedback_angles(rule: Rule) -> dict[str, float]:
    """The angle between the feedback matrix B and the weight W of every layer that sends a gradient
    back, both as vectors.

    Lillicrap et al. 2016 (arXiv:1411.0247). 90 degrees is what a random B begins with, 0 what
    backpropagation has; below 90 what comes back through B still goes down, on average.

    There is one for `FeedbackAlignment`, `SignSymmetry` and `KolenPollack`. The direct rules have
    no matrix in the place of a weight. Where B is drawn for each batch one is drawn here, too; the
    generators are left where they were.

    Args:
        rule: one of these.

    Returns:
        Degrees, 0 to 180, under "BLOCK.WEIGHT"; nan where a matrix is 0.

    Raises:
        InputError: another rule.
    """
    return {name: degrees_between(b, w) for name, b, w in _pairs("feedback_angles", rule)}


def pseudo_inverse_angles(rule: Rule) -> dict[str, float]:
    """The angle between B^T, through which the gradient goes back, and the pseudo-inverse of W.

    Lillicrap et al. 2016: under feedback alignment the weights move so that B^T comes to
    act like the pseudo-inverse of W. A convolution's kernel counts as the matrix
    (out, in x height x width). It takes a singular value decomposition of every weight.

    Args and what else is said: as `feedback_angles`.
    """
    pairs = _pairs("pseudo_inverse_angles", rule)
    return {
        name: degrees_between(b.flatten(1).T, torch.linalg.pinv(w.flatten(1)))
        for name, b, w in pairs
    }


def _pairs(call: str, rule: Rule) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, B, W) of every layer that sends a gradient back, in float64."""
    if not isinstance(rule, FeedbackRule):
        raise InputError(
            f"{call}(rule): {type(rule).__name__} sends nothing back through a matrix in the place "
            "of a weight; give FeedbackAlignment, SignSymmetry or KolenPollack"
        )
    devices = {p.device.index for p in rule.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(sorted(devices)):
        matrices = rule.matrices()
    blocks = rule.blocks
    for label, block, names in zip(blocks.names, blocks, rule.sending, strict=True):
        for name in names:
            weight = block.get_parameter(name)
            yield f"{label}.{name}", matrices[weight].detach().double(), weight.detach().double()
