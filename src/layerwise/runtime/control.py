"""What processes tell each other beside activations and gradients: small, and on the host."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from layerwise.runs.metrics import Metrics
from layerwise.runtime.link import device_of, losing

OF_BLOCKS = ("rule", "optimizers", "ema")  # parts of a state that each stage has its own share of


class Control:
    """Collectives over all ranks, whatever carries activations.

    Args:
        stages: into how many parts the blocks are divided.
    """

    def __init__(self, stages: int):
        self.stages = stages
        self.group = new_group(None, "gloo")
        self.leader = dist.get_world_size() - 1  # the rank that keeps the run's files

    def any(self, flag: bool) -> bool:
        """Whether a rank says yes."""
        return anyone(flag, self.group)

    def gather(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """The states of all ranks as one, of replicas the last one's; None but for the leader."""
        leads = dist.get_rank() == self.leader
        states: list[Any] | None = [None] * (self.leader + 1) if leads else None
        with losing("a rank"):
            dist.gather_object(_on_host(state), states, dst=self.leader, group=self.group)
        if states is None:
            return None
        together = dict(states[self.leader])
        for key, value in together.items():
            if key in OF_BLOCKS and value is not None:
                together[key] = {k: v for state in states for k, v in state[key].items()}
        return together

    def add_up(self, tally: Metrics) -> None:
        """Make `tally` that of all blocks and all parts of the batches, everywhere."""
        flags = torch.tensor([tally.has_loss, tally.has_logits])
        sums = torch.stack([tally.loss_sums, tally.right]).double().cpu()
        # Every stage counts the same samples.
        counted = torch.tensor([[tally.samples], [tally.labels]]).double().expand(2, sums.shape[1])
        together = torch.cat([sums, flags, counted / self.stages])
        with losing("a rank"):
            dist.all_reduce(together, group=self.group)
        tally.loss_sums.copy_(together[0])
        tally.right.copy_(together[1])
        tally.has_loss, tally.has_logits = together[2:4].bool().tolist()
        tally.samples, tally.labels = (round(x) for x in together[4:, 0].tolist())

    def close(self) -> None:
        """Wait for all."""
        with losing("a rank"):
            dist.barrier(group=self.group)


def anyone(flag: bool, group: dist.ProcessGroup) -> bool:
    """Whether a rank of the group says yes."""
    said = torch.tensor(float(flag), device=device_of(group))
    with losing("a rank"):
        dist.all_reduce(said, group=group)
    return bool(said > 0)


def new_group(
    ranks: list[int] | None, backend: str | None = None, patient: bool = False
) -> dist.ProcessGroup:
    """A group of these ranks, or of all; every rank makes it. A `patient` one never gives up by
    itself: its user decides how long a silence may be."""
    timeout = datetime.timedelta(days=365) if patient else None
    # What is no group is so for the ranks outside of it, which do not use it.
    return dist.new_group(ranks, timeout, backend)  # type: ignore[return-value]


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {k: _on_host(v) for k, v in value.items()}
    return value
