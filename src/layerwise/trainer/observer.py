"""The interface of everything that watches a training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from layerwise.rules.base import Rule, Scale


class Observer:
    """Watches a training and records what it sees. Every method does nothing by default.

    Training gives the same bits with an observer and without: a method may draw random numbers, but
    leaves weights, buffers and gradients as they are. Observers are called in the order in which
    the trainer was given them.
    """

    def due(self, step: int) -> bool:
        """Whether `before_step` is to be called before this step (from 0)."""
        return False

    def before_step(self, step: int, rule: Rule, *, x: Tensor, y: Tensor, scale: Scale) -> None:
        """Look at the rule in train mode, before a step that is `due`.

        Args:
            step: optimizer steps completed.
            rule: the rule that trains.
            x: the step's first batch, (B, ...).
            y: its labels.
            scale: the scale that losses have in this training.
        """

    def before_checkpoint(self, epoch: int, rule: Rule) -> None:
        """Look at the rule as it is evaluated, in eval mode, after an epoch (from 1) and before its
        checkpoint is written. Only called in the process that writes the run's files."""

    def after_epoch(self, epoch: int, rule: Rule, row: Mapping[str, float | int | None]) -> None:
        """The same once the checkpoint is written: an epoch is never seen twice, even if training
        is killed and resumed.

        Args:
            epoch: epochs completed.
            rule: the rule as it is evaluated.
            row: the epoch's row of `metrics.csv`.
        """
