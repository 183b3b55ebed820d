"""The angle between the feedback matrices of a rule and its weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from layerwise.analysis.angle import degrees_between
from layerwise.errors import InputError
from layerwise.rules.base import Rule
from layerwise.rules.families.feedback import FeedbackRule


def feedback_angles(rule: Rule) -> dict[str, float]:
    """The angle between feedback matrix B and weight W, both as vectors, of every layer that sends
    a gradient back.

    Lillicrap et al. 2016 (arXiv:1411.0247). A random B starts at 90 degrees; backpropagation has 0.
    Below 90 degrees, the gradient that comes back through B is on average a descent direction.

    `FeedbackAlignment`, `SignSymmetry` and `KolenPollack` have such matrices. The direct rules do
    not replace weights with matrices. If the rule draws B for each batch, one is drawn here, too;
    the generators are restored.

    Args:
        rule: one of these three.

    Returns:
        Degrees, 0 to 180, under "BLOCK.WEIGHT"; nan if a matrix is zero.

    Raises:
        InputError: another rule.
    """
    return {name: degrees_between(b, w) for name, b, w in _pairs("feedback_angles", rule)}


def pseudo_inverse_angles(rule: Rule) -> dict[str, float]:
    """The angle between B^T, through which the gradient goes back, and the pseudo-inverse of W.

    Lillicrap et al. 2016: under feedback alignment, the weights change until B^T acts like the
    pseudo-inverse of W. A convolution's kernel is taken as the matrix (out, in x height x width).
    This computes a singular value decomposition of every weight.

    Arguments, result and errors are those of `feedback_angles`.
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
            f"{call}(rule): {type(rule).__name__} replaces no weight with a feedback matrix; give "
            "FeedbackAlignment, SignSymmetry or KolenPollack"
        )
    devices = {p.device.index for p in rule.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(sorted(devices)):
        matrices = rule.matrices()
    blocks = rule.blocks
    for label, block, names in zip(blocks.names, blocks, rule.sending, strict=True):
        for name in names:
            weight = block.get_parameter(name)
            yield f"{label}.{name}", matrices[weight].detach().double(), weight.detach().double()
