"""Where a training stands: everything that its next step depends on, into a checkpoint and back."""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from layerwise.errors import InputError
from layerwise.objectives.classify import is_cross_entropy
from layerwise.rules.base import Rule, criterion_of
from layerwise.runs.metrics import Metrics
from layerwise.runtime import Runtime
from layerwise.trainer.checkpoint import (
    entry,
    load_held,
    load_optimizer_state,
    load_rule,
    names_of_blocks,
    optimizer_state,
    renamed,
    tensors_in,
)
from layerwise.trainer.stepper import Stepper


@dataclass
class Position:
    """How far training is.

    Attributes:
        epoch: epochs completed.
        batch: batches completed of the epoch under way.
        step: optimizer steps completed.
        seconds: seconds of the epoch under way, training only.
        best: the best epoch's score so far; None if there is none.
        best_epoch: its number, from 1.
        mark: a checksum over what was read of the epoch under way; None if it is not known.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    mark: int | None = None


class State:
    """Everything that the next step depends on.

    Args:
        rule: the rule that trains, on its device.
        runtime: what runs it.
        stepper: its optimizers and averaged weights.
        device: where random numbers are drawn.

    Attributes:
        position: how far training is.
        metrics: sums of losses and hits of the epoch under way.
    """

    def __init__(self, rule: Rule, runtime: Runtime, stepper: Stepper, device: torch.device):
        self.rule, self.runtime, self.stepper, self.device = rule, runtime, stepper, device
        self.position = Position()
        self.metrics = self.new_metrics()

    def new_metrics(self) -> Metrics:
        """Sums that begin at zero."""
        soft = is_cross_entropy(criterion_of(self.rule))
        return Metrics(len(self.rule.blocks), self.device, soft_labels=soft)

    def gathered(self) -> dict[str, Any] | None:
        """The state of all blocks, fetched from the processes that hold them. None in a process
        that does not write the run's files."""
        state = self.runtime.gather(self.state_dict())
        if state is not None and len(self.runtime.blocks) < len(self.rule.blocks):
            self._load_weights(state)
        return state

    def state_dict(self) -> dict[str, Any]:
        """The state of the blocks in this process."""
        here = names_of_blocks(self.rule, self.runtime.blocks)
        stepper = self.stepper
        metrics = copy.deepcopy(self.metrics)
        self.runtime.add_up(metrics)
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            **asdict(self.position),
            "rule": {name: t for name, t in self.rule.state_dict().items() if name in here},
            "optimizers": optimizer_state(self.rule, stepper.optimizers.values()),
            "ema": None if stepper.ema is None else self._ema_state(here),
            "scaler": None if stepper.scaler is None else stepper.scaler.state_dict(),
            "tally": metrics.state_dict(),
            "rng": rng,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state of all blocks was taken.

        Raises:
            InputError: a part of the state is missing, of another kind, or does not fit.
        """
        stepper = self.stepper
        for name, kind in (
            ("epoch", int),
            ("batch", int),
            ("step", int),
            ("seconds", (int, float)),
        ):
            entry(state, name, kind, least=0)
        entry(state, "best", (int, float, NoneType))
        state = {"best_epoch": 0, "mark": None, **state}  # an older version did not keep these
        entry(state, "best_epoch", int, least=0)
        entry(state, "mark", (int, NoneType))
        entry(state, "scaler", (Mapping, NoneType))
        averaged = entry(state, "ema", (Mapping, NoneType)) is not None
        if averaged != (stepper.ema is not None):
            raise InputError(
                f"checkpoint: it has {'' if averaged else 'no '}averaged weights, and the config "
                f"asks for {'some' if stepper.ema is not None else 'none'}; use the --ema that it "
                "was trained with"
            )
        self._check_position(state)
        self._load_weights(state)
        load_optimizer_state(
            self.rule, stepper.optimizers.values(), entry(state, "optimizers", object)
        )
        if stepper.scaler is not None:
            stepper.scaler.load_state_dict(entry(state, "scaler", dict))
        self.metrics.load_state_dict(entry(state, "tally", Mapping))
        self.metrics.only(self.runtime.blocks if self.runtime.counts else ())
        for name in asdict(self.position):
            setattr(self.position, name, state[name])
        tensors_in(entry(state, "rng", Mapping), "rng")
        torch.set_rng_state(entry(state["rng"], "cpu", Tensor))
        if "cuda" in state["rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)

    def _check_position(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that was taken with batches of another size, or fewer of them."""
        steps = self.stepper.steps_per_epoch
        within = math.ceil(state["batch"] / self.stepper.settings.accumulate)
        if state["step"] != state["epoch"] * steps + within or within > steps:
            raise InputError(
                f"checkpoint: step {state['step']} is not in epoch {state['epoch'] + 1} of "
                f"{steps} steps each; use the data and the config that it was trained with"
            )

    def _ema_state(self, here: Container[str]) -> dict[str, Tensor]:
        assert self.stepper.ema is not None
        prefix = "module."
        state = self.stepper.ema.state_dict()
        return {n: t for n, t in state.items() if n.removeprefix(prefix) in here or prefix not in n}

    def _load_weights(self, state: Mapping[str, Any]) -> None:
        load_rule(self.rule, state["rule"])
        if self.stepper.ema is not None:
            tensors_in(state["ema"], "ema")
            load_held(self.stepper.ema, renamed(state["ema"]))
