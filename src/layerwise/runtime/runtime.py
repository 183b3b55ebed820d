"""The contract between a trainer and a runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from layerwise.objectives.batch import OnBlock, Scale, identity, nothing
from layerwise.rules.base import Report, Rule
from layerwise.runs.metrics import Metrics


@dataclass(frozen=True)
class StepOptions:
    """Options of one training step.

    Attributes:
        scale: as in `Rule.backward`.
        on_block: as in `Rule.backward`, for the blocks of this process.
        before_block: called with a block's number before the block runs; some runtimes also call it
            after the last block, with the number of blocks.
        stops: whether all processes are to stop after this batch.
        completes: whether the gradients are complete after this batch; otherwise more batches add
            to them, and replicas do not average them yet.
    """

    scale: Scale = identity
    on_block: OnBlock = nothing
    before_block: OnBlock = nothing
    stops: bool = False
    completes: bool = True


class Runtime(Protocol):
    """The part of a training that this process does: all blocks, some of the blocks, or all blocks
    on some of the samples. A runtime does not know which rule it runs.

    Every process of a training makes one, with the same rule, and calls the same methods in the
    same order. Except in a process that trains alone, every method raises `LostStage` if another
    process is gone.

    Attributes:
        rule: the rule, with all blocks.
        blocks: the numbers of the blocks that this process trains.
        leader: whether this process keeps the run's files.
        reads_input: whether this process needs the inputs as well as the labels.
        replica: the number of this process among those that train the same blocks, each on its own
            part of every batch.
        counts: whether this process, among its replicas, is the one that keeps the run's counts.
    """

    @property
    def rule(self) -> Rule: ...

    blocks: range
    leader: bool
    reads_input: bool
    replica: int
    counts: bool

    def backward(
        self,
        x: Tensor | None,
        y: Tensor,
        options: StepOptions = StepOptions(),
    ) -> Report:
        """This process's part of `rule.backward(x, y)`.

        Args:
            x: a batch of inputs, (B, ...); None if this process does not read them.
            y: their labels, (B,) or (B, T).
            options: options of the step.

        Returns:
            The report of this process's blocks, with None for the others. Its logits are the
            network's output in a process that has the last block; in others they are the output of
            the last block that the process has.

        Raises:
            InputError: as in `Rule.backward`.
        """
        ...

    def exits(
        self, rule: Rule, x: Tensor | None, y: Tensor, stops: bool = False
    ) -> Sequence[Tensor | None]:
        """This process's part of `rule.exits(x)`, with None for the blocks of other processes.

        Args:
            rule: the trained rule, or one with an average of its weights.
            x: a batch of inputs, (B, ...); None if this process does not read them.
            y: their labels, (B,) or (B, T).
            stops: whether all processes are to stop after this batch.
        """
        ...

    def stops(self, asked: bool) -> bool:
        """Whether all processes stop after the batch just done.

        Args:
            asked: whether this process was asked to stop.
        """
        ...

    def agree(self, stops: bool) -> bool:
        """Whether any process stops after the save that all are about to make; each process calls
        this before it.

        Args:
            stops: whether this process stops.
        """
        ...

    def gather(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """The states of all processes as one, in the leader; None in every other process."""
        ...

    def add_up(self, tally: Metrics) -> None:
        """Add to `tally` what the other processes have counted, in every process."""
        ...

    def close(self) -> None:
        """End the training: wait until the other processes have what they need from this one."""
        ...
