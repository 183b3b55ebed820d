"""Another length of a training that has begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layerwise.errors import InputError
from layerwise.rules.base import Rule
from layerwise.runs.run import Run
from layerwise.trainer.learning_rate import LearningRate
from layerwise.trainer.optim import Schedule


def check_length(
    run: Run,
    epochs: int,
    *,
    rule: Rule,
    lr: float,
    schedule: Schedule,
    steps_per_epoch: int,
    checkpoint: str = "last",
) -> None:
    """Refuse another number of epochs if the training so far would have been a different one with
    it: at other learning rates, or in another phase of the rule.

    Args:
        run: as it was trained so far.
        epochs: of the whole training.
        rule: the run's.
        lr: the run's learning rate.
        schedule: the run's.
        steps_per_epoch: optimizer steps of an epoch.
        checkpoint: the checkpoint from which training continues.

    Raises:
        InputError: such a number, or fewer epochs than were trained.
    """
    then, state = run.config["epochs"], run.load(checkpoint)
    if epochs == then or state is None:
        return
    asked = f"--resume {run.path} --epochs {epochs}"
    if epochs < state["epoch"] + bool(state["batch"]):
        raise InputError(
            f"{asked}: the run has trained {state['epoch']} epochs"
            f"{' and a part of the next' if state['batch'] else ''}; give more"
        )
    old, new = (
        LearningRate(lr, schedule, rule.phases(length), steps_per_epoch)
        for length in (then, epochs)
    )
    for step in range(state["step"]):
        epoch = step // steps_per_epoch
        if old.phase(epoch) != new.phase(epoch):
            raise InputError(
                f"{asked}: {type(rule).__name__} divides all epochs among its phases, so epoch "
                f"{epoch + 1} of {epochs} would have been in another phase than of {then}; train "
                f"a new run, or one that starts from its weights: --init {run.path}"
            )
        if old.at(step) != new.at(step):
            raise InputError(
                f"{asked}: the learning rate of {type(schedule).__name__} depends on the number of "
                f"epochs: at step {step} of {state['step']} it was {old.at(step):.3g}, and would "
                f"have been {new.at(step):.3g}; train a new run, or one that starts from its "
                f"weights: --init {run.path}"
            )


def record_length(run: Run, epochs: int) -> None:
    """Write another number of epochs into a run's config. All files as they were are kept in a new
    folder set-aside-N. The run then counts as unfinished."""
    config: Mapping[str, Any] = run.config
    if epochs != config["epochs"]:
        run.rewrite_config(
            {**config, "epochs": epochs}, f"{epochs} epochs instead of {config['epochs']}"
        )
