"""What a trainer asks of a runtime."""

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
    """How a runtime trains on one batch.

    Attributes:
        scale: as of `Rule.backward`.
        on_block: as of `Rule.backward`, for the blocks of this process.
        before_block: called with a block's number before it runs.
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
    """Where the blocks of a rule live: in this process, or some of them, or for some of the
    samples. A runtime does not know which rule it runs.

    Every process of a training makes one, with the same rule, and calls the same methods in the
    same order.

    Attributes:
        rule: the rule, with all blocks.
        blocks: the numbers of the blocks that this process trains.
        leader: whether this process keeps the run's files.
        reads_input: whether this process needs the inputs, and not the labels alone.
        replica: the number of this process among those that train the same blocks, each on its own
            part of every batch.
        counts: whether what a run has counted so far is kept in this process, and not in another
            replica.
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
            x: a batch, (B, ...); None where this process does not read it.
            y: its labels, (B,) or (B, T).
            options: how.

        Returns:
            The report of this process's blocks, with None for the others. Its logits are the
            network's output where the last block is, and elsewhere the output of the last block
            that this process has.
        """
        ...

    def exits(
        self, rule: Rule, x: Tensor | None, y: Tensor, stops: bool = False
    ) -> Sequence[Tensor | None]:
        """This process's part of `rule.exits(x)`, with None for the blocks of other processes.
        `rule` may be an average of the trained one's weights."""
        ...

    def stops(self, asked: bool) -> bool:
        """Whether all processes stop after the batch just done; `asked` is what this process was
        told."""
        ...

    def gather(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """The states of all processes as one; None in every process but the leader."""
        ...

    def add_up(self, tally: Metrics) -> None:
        """Add to `tally` what the other processes have counted, in every process."""
        ...

    def close(self) -> None:
        """Training is over: wait until the other processes have what they need from this one."""
        ...
