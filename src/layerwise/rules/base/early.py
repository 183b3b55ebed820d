"""Optimizer steps within a rule's backward passes, so that a block's gradients never all exist."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial

from torch import Tensor
from torch.optim import Optimizer

from layerwise.rules.base.rule import Rule

SMALL = 1 << 14  # parameters with fewer numbers wait: their gradients take little memory


@contextlib.contextmanager
def early_steps(rule: Rule, optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """Within, `rule.backward` steps each large parameter and sets its gradient to None as soon as
    autograd has accumulated the gradient.

    The parameters that remain have their gradients afterwards, to be stepped as usual, by
    `on_block` or at the end. Weights become the same, bit for bit. If the rule does not complete
    gradients in one pass (`Rule.one_pass`), nothing is stepped early. PyTorch's own recipe for a
    step in the backward pass does the same with one optimizer per parameter.

    Args:
        rule: the rule; within, its gradients are those of steps, not of measurements.
        optimizers: those of its parameters. They must treat every parameter by itself, as SGD and
            Adam do. Gradients are not clipped and not unscaled.
    """
    hooks = []
    for optimizer in optimizers if rule.one_pass else ():
        for group in optimizer.param_groups:
            hooks += [
                p.register_post_accumulate_grad_hook(partial(_step, optimizer, group))
                for p in group["params"]
                if p.requires_grad and p.numel() >= SMALL
            ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _step(optimizer: Optimizer, group: dict, parameter: Tensor) -> None:
    """Step one parameter of an optimizer's group, and free its gradient."""
    everything = [(g, g["params"]) for g in optimizer.param_groups]
    for g, _ in everything:
        g["params"] = [parameter] if g is group else []
    try:
        optimizer.step()
    finally:
        for g, parameters in everything:
            g["params"] = parameters
    parameter.grad = None
