"""Small messages between all processes, on the host: flags, states and metrics."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from layerwise.runs.metrics import Metrics
from layerwise.runtime.link import losing

LOOK_EVERY_S = 0.001
OF_BLOCKS = ("rule", "optimizers", "ema")  # parts of a state that differ between stages


class Control:
    """Collectives over all ranks, on a gloo group of their own.

    Args:
        stages: number of stages into which the blocks are divided.
    """

    def __init__(self, stages: int):
        self.stages = stages
        self.group = new_group(None, "gloo")
        self.leader = dist.get_world_size() - 1  # the rank that keeps the run's files

    def any(self, flag: bool, meanwhile: Callable[[], None] | None = None) -> bool:
        """Whether any rank gives True.

        Args:
            flag: what this rank gives.
            meanwhile: called again and again while other ranks have not given theirs.
        """
        return anyone(flag, self.group, meanwhile)

    def gather(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """The states of all ranks as one, in the leader; None in every other rank. Of several
        replicas the state of the last is taken."""
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
        """Add to `tally`, in every rank, what the other ranks have counted for their blocks and
        their parts of the batches."""
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
        """Wait until every rank is here."""
        with losing("a rank"):
            dist.barrier(group=self.group)


def anyone(
    flag: bool, group: dist.ProcessGroup, meanwhile: Callable[[], None] | None = None
) -> bool:
    """As `Control.any`, over the ranks of a group of gloo."""
    said = torch.tensor(float(flag))
    with losing("a rank"):
        work = dist.all_reduce(said, group=group, async_op=True)
        assert work is not None
        while meanwhile is not None and not work.is_completed():
            meanwhile()
            time.sleep(LOOK_EVERY_S)
        work.wait()
    return bool(said > 0)


def new_group(
    ranks: list[int] | None, backend: str | None = None, patient: bool = False
) -> dist.ProcessGroup:
    """A process group of these ranks, or of all ranks if None. Every rank must call this.

    Args:
        ranks: the members.
        backend: "gloo" or "nccl"; by default that of the default group.
        patient: never time out; the group's user then decides how long to wait.
    """
    timeout = datetime.timedelta(days=365) if patient else None
    # Ranks outside the group get a placeholder, which they never use.
    return dist.new_group(ranks, timeout, backend)  # type: ignore[return-value]


def backend_of_gradients(device: torch.device) -> str:
    """The backend that averages gradients: NCCL if every process has a GPU of its own, otherwise
    gloo, which also averages those of processes that share a GPU. Every rank must call this.

    Args:
        device: of this process's gradients.
    """
    gpu = None
    if device.type == "cuda" and dist.is_nccl_available():
        gpu = str(torch.cuda.get_device_properties(device).uuid)
    found: list[str | None] = [None] * dist.get_world_size()
    with losing("a rank"):
        dist.all_gather_object(found, gpu, group=new_group(None, "gloo"))
    return "nccl" if None not in found and len(set(found)) == len(found) else "gloo"


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters; the CPU for a module without any."""
    return next(module.parameters(), torch.zeros(())).device


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {k: _on_host(v) for k, v in value.items()}
    return value
