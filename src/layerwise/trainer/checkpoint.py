"""What goes into a checkpoint and comes back out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.errors import InputError
from layerwise.rule import Rule


def load_rule(rule: Rule, state: Mapping[str, Tensor]) -> None:
    """Load a network and its heads.

    Raises:
        InputError: the checkpoint is of another network or rule.
    """
    own = rule.state_dict()
    for key in own.keys() | state.keys():
        here = tuple(own[key].shape) if key in own else "nothing"
        there = tuple(state[key].shape) if key in state else "nothing"
        if here != there:
            raise InputError(
                f"checkpoint: it is of another network or rule: {key} is {there} there and "
                f"{here} here; use the config it was trained with"
            )
    rule.load_state_dict(state)


def load_evaluated(rule: Rule, state: Mapping[str, Any]) -> None:
    """Load what a run evaluates: the average of the weights where it kept one, else the weights."""
    ema = state.get("ema")
    if ema is None:
        load_rule(rule, state["rule"])
    else:
        prefix = "module."
        load_rule(rule, {k[len(prefix) :]: v for k, v in ema.items() if k.startswith(prefix)})


def like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded state the memory layout of its parameter (a file holds plain layout)."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)


def block_keys(network: nn.Module, rule: Rule) -> dict[str, str]:
    """Each tensor's name in the network that was cut -> its name in the rule's blocks."""
    keys = {id(tensor): key for key, tensor in rule.blocks.state_dict(keep_vars=True).items()}
    whole = network.state_dict(keep_vars=True)
    return {name: keys[id(tensor)] for name, tensor in whole.items() if id(tensor) in keys}
