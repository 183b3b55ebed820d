"""Weights and optimizer state in a checkpoint: under which names they are kept and found."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX

from layerwise.errors import InputError
from layerwise.rules.base import Rule
from layerwise.runs.released import is_released

T = TypeVar("T")
USE_ANOTHER = "use another one: --checkpoint NAME"


def renamed(state: Mapping[str, T]) -> dict[str, T]:
    """A state with present names. In checkpoints of earlier versions the number of a block comes
    before the network's names: `blocks.3.layer1.weight` is now `blocks.model.layer1.weight`."""
    return {
        re.sub(r"^(module\.)?blocks\.\d+\.", r"\1blocks.model.", k): v for k, v in state.items()
    }


def load_rule(rule: Rule, state: Mapping[str, Tensor]) -> None:
    """Load a network and its heads.

    Raises:
        InputError: the checkpoint belongs to another network or rule, or does not hold tensors.
    """
    own = rule.state_dict()
    tensors_in(state, "rule")
    state = renamed(state) if any(key.startswith("blocks.model.") for key in own) else state
    for key in own.keys() | state.keys():
        if key == _EXTRA_STATE_KEY_SUFFIX and key in own and key in state:
            continue  # what a rule carries from batch to batch is as long as a batch
        here = tuple(own[key].shape) if key in own else "nothing"
        there = tuple(state[key].shape) if key in state else "nothing"
        if here != there:
            raise InputError(
                f"checkpoint: it belongs to another network or rule: {key} is {there} there and "
                f"{here} here; use the config that it was trained with"
            )
        if own[key].dtype != state[key].dtype:
            raise InputError(
                f"checkpoint: {key} is {state[key].dtype} there and {own[key].dtype} here; "
                f"{USE_ANOTHER}"
            )
    load_held(rule, state)


def load_held(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a module, without those parameters that other processes have (`released.py`)."""
    own = module.state_dict()
    elsewhere = {key for key in own if isinstance(own[key], Tensor) and is_released(own[key])}
    here = {key: value for key, value in state.items() if key not in elsewhere}
    module.load_state_dict(here if elsewhere else state, strict=not elsewhere)


def load_evaluated(rule: Rule, state: Mapping[str, Any]) -> None:
    """Load the weights that a run evaluates: their moving average if it kept one.

    Raises:
        InputError: the checkpoint lacks them, or belongs to another network or rule.
    """
    ema = state.get("ema")
    entry(state, "epoch", int, least=0)
    if ema is None:
        load_rule(rule, entry(state, "rule", Mapping))
    else:
        tensors_in(ema, "ema")
        prefix = "module."
        load_rule(rule, {k[len(prefix) :]: v for k, v in ema.items() if k.startswith(prefix)})


def entry(
    state: Mapping[str, Any], key: str, kind: type | tuple[type, ...], least: float | None = None
) -> Any:
    """The value of a key in a checkpoint.

    Args:
        state: the checkpoint, or a part of it.
        key: of the value.
        kind: the type that the value must have.
        least: the smallest number that it may be.

    Raises:
        InputError: the key is missing, or its value is of another kind.
    """
    if key not in state:
        raise InputError(f"checkpoint: {key!r} is missing in it; {USE_ANOTHER}")
    value = state[key]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(
            f"checkpoint: {key!r} is of the type {type(value).__name__}; {USE_ANOTHER}"
        )
    if least is not None and number and not least <= value < math.inf:
        raise InputError(f"checkpoint: {key!r} is {value}; {USE_ANOTHER}")
    return value


def tensors_in(state: Any, key: str) -> None:
    """Check that a part of a checkpoint maps names to tensors.

    Raises:
        InputError: it does not.
    """
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InputError(f"checkpoint: {key!r} is not a mapping of tensors; {USE_ANOTHER}")


def optimizer_state(
    rule: Rule, optimizers: Iterable[torch.optim.Optimizer | None]
) -> dict[str, dict[str, Any]]:
    """The state that optimizers keep for each parameter, under the parameter's name, so that it
    does not depend on which optimizer steps it, or in which process."""
    states = {id(p): s for o in optimizers if o is not None for p, s in o.state.items()}
    return {name: states[id(p)] for name, p in rule.named_parameters() if id(p) in states}


def load_optimizer_state(
    rule: Rule,
    optimizers: Iterable[torch.optim.Optimizer | None],
    states: Mapping[str, Mapping[str, Any]],
) -> None:
    """Give each optimizer the part of an `optimizer_state` that belongs to its parameters.

    Raises:
        InputError: a checkpoint of an early version, which kept no names of parameters; the state
            is that of other parameters, or of another optimizer.
    """
    if not isinstance(states, (Mapping, list)):
        raise InputError(f"checkpoint: 'optimizers' is not a mapping; {USE_ANOTHER}")
    if isinstance(states, list):
        raise InputError(
            "checkpoint: it was written by an earlier version, which kept the optimizer's state "
            "without names, so it cannot be continued; `layerwise evaluate` still reads it"
        )
    names = {id(p): name for name, p in rule.named_parameters()}
    if any(name.startswith("blocks.model.") for name in names.values()):
        states = renamed(states)
    _check_optimizer_state(dict(rule.named_parameters()), states)
    for optimizer in optimizers:
        if optimizer is None:
            continue
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found = {k: states[n] for k, p in enumerate(parameters) if (n := names[id(p)]) in states}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": found})
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    # Checkpoints hold contiguous tensors; the parameter may be channels-last.
                    state[key] = torch.empty_like(parameter).copy_(value)


# What optimizers keep for each weight, in the weight's shape; Adafactor, for example, keeps other
# shapes as well.
OF_EACH_WEIGHT = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg")


def _check_optimizer_state(
    parameters: Mapping[str, nn.Parameter], states: Mapping[str, Mapping[str, Any]]
) -> None:
    first: dict[int, Any] = {}  # the keys of matrices, of vectors, ...: they may differ
    for name, state in states.items():
        if name not in parameters:
            raise InputError(
                f"checkpoint: its optimizer's state belongs to another network or rule: {name!r} "
                "is no parameter here; use the config that it was trained with"
            )
        axes = parameters[name].ndim
        whole = isinstance(state, Mapping) and state.keys() == first.setdefault(axes, state).keys()
        if not whole:
            raise InputError(
                f"checkpoint: the optimizer's state of {name} is not whole; {USE_ANOTHER}"
            )
        for key, value in state.items():
            here = tuple(parameters[name].shape)
            if key not in OF_EACH_WEIGHT or not isinstance(value, Tensor):
                continue
            if (there := tuple(value.shape)) != here:
                raise InputError(
                    f"checkpoint: the optimizer's {key} of {name} is {there} there and {here} "
                    f"here; {USE_ANOTHER}"
                )


def names_of_blocks(rule: Rule, blocks: Iterable[int]) -> set[str]:
    """Names in the rule's state of what belongs to these blocks, or to no block (such as a rule's
    fixed matrices)."""
    others = set(range(len(rule.blocks))) - set(blocks)
    parts = [part for i in others for part in (rule.blocks[i], *rule.auxiliary(i))]
    elsewhere = {id(t) for part in parts for t in part.state_dict(keep_vars=True).values()}
    return {n for n, t in rule.state_dict(keep_vars=True).items() if id(t) not in elsewhere}


def block_keys(network: nn.Module, rule: Rule) -> dict[str, str]:
    """Each tensor's name in the network that was cut -> its name in the rule's blocks."""
    keys = {id(tensor): key for key, tensor in rule.blocks.state_dict(keep_vars=True).items()}
    whole = network.state_dict(keep_vars=True)
    return {name: keys[id(tensor)] for name, tensor in whole.items() if id(tensor) in keys}
