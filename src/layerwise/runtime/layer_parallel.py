"""Blocks in several processes: a stage trains its blocks on what the stage before sends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from layerwise.batch import Batch, Report, identity
from layerwise.errors import InputError
from layerwise.rule import LocalRule, OnBlock, Rule, Scale
from layerwise.runtime.link import LAST, MORE, Receiver, Sender
from layerwise.tally import Tally


class LayerParallel:
    """The stage of this process.

    Every rank of the default process group makes one, with the same rule and the same `starts`, and
    then calls the same methods in the same order. Rank r owns blocks starts[r] to starts[r+1] - 1:
    it receives their input, calls the rule's own `local_backward`, and sends the detached output
    on, without waiting for the stages behind it. Labels do not travel: every rank reads them from
    the same data.

    For the same batches in the same order every block gets the gradient of the serial loop, bit for
    bit: no block needs anything from the blocks after it, and each has stepped as often as it would
    have.

    Args:
        rule: with all blocks; only those of this stage are used here.
        starts: number of each stage's first block, increasing; the first is 0.
        depth: batches under way between two stages at most, on either side.
        timeout_s: how long to wait for another stage before it counts as hung.

    Attributes:
        blocks: numbers of this stage's blocks.
        leader: whether this process keeps the run's files: the last stage, where the network's
            own loss is.
        reads_input: whether this stage needs the images, and not the labels alone.

    Raises:
        InputError: a rule that needs more than forward information; starts that are no division of
            the blocks into as many stages as there are ranks.
    """

    def __init__(self, rule: Rule, starts: Sequence[int], depth: int = 2, timeout_s: float = 600.0):
        rank, world = dist.get_rank(), dist.get_world_size()
        check_rule(rule, world)
        assert isinstance(rule, LocalRule)
        check_starts(starts, len(rule.blocks), world)
        ends = [*starts[1:], len(rule.blocks)]
        self.rule = rule
        self.blocks = range(starts[rank], ends[rank])
        self.leader = rank == world - 1
        read = [rule.objectives[str(i)] for i in self.blocks if str(i) in rule.objectives]
        self.reads_input = rank == 0 or any(o.reads_input for o in read)  # type: ignore[union-attr]
        self._mark = MORE  # that came with the last batch: the first stage's word to all
        # For what is small and on the host, whatever carries activations.
        self._control = _group(None, "gloo")
        self._before: Receiver | None = None
        self._after: Sender | None = None
        for left in range(world - 1):  # every rank makes every group, in the same order
            group = _group([left, left + 1])
            if rank == left:
                self._after = Sender(left + 1, group, depth)
            if rank == left + 1:
                device = next(rule.parameters(), torch.zeros(())).device
                self._before = Receiver(left, group, depth, device, timeout_s)

    def backward(
        self,
        x: Tensor | None,
        y: Tensor,
        *,
        scale: Scale = identity,
        on_block: OnBlock | None = None,
        stops: bool = False,
    ) -> Report:
        """This stage's part of `rule.backward(x, y)`.

        Args:
            x: a batch, (B, ...); None where this stage is not the first and none of its objectives
                reads it.
            y: its labels, (B,) or (B, T).
            scale: as in `Rule.backward`.
            on_block: as in `Rule.backward`; called for this stage's blocks.
            stops: on the first stage, that all are to stop after this batch.

        Returns:
            The report with what this stage's blocks found, None for the others; its logits are the
            network's output on the last stage, and this stage's elsewhere.
        """
        batch = Batch(y if x is None else x, y, scale)
        h = self._take(self.rule.enter(batch) if self._before is None else None, stops)
        for i in self.blocks:
            h = self.rule.local_backward(i, h, batch)
            if on_block is not None:
                on_block(i)
        if self._after is not None:
            self._after.send(h, mark=self._mark)
        return batch.report(h, len(self.rule.blocks))

    @torch.no_grad()
    def exits(
        self, rule: Rule, x: Tensor | None, y: Tensor, stops: bool = False
    ) -> Sequence[Tensor | None]:
        """This stage's part of `rule.exits(x)`: None for the blocks of other stages. `rule` may be
        an average of the trained one's weights."""
        scores: list[Tensor | None] = [None] * len(rule.blocks)
        h = self._take(x, stops)
        for i in self.blocks:
            h, scores[i] = rule.exit(i, h)
        if self._after is not None:
            self._after.send(h, mark=self._mark)
        return scores

    def stops(self, asked: bool) -> bool:
        """Whether all stop after the batch just done: the first stage decides, for it is ahead."""
        return self._mark == LAST

    def gather(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """The states of all processes as one; None but for the leader."""
        leader = dist.get_world_size() - 1
        states: list[Any] | None = [None] * (leader + 1) if self.leader else None
        dist.gather_object(_on_host(state), states, dst=leader, group=self._control)
        if states is None:
            return None
        together = dict(states[leader])
        for key, value in together.items():
            if key in OF_BLOCKS and value is not None:
                together[key] = {k: v for state in states for k, v in state[key].items()}
        return together

    def add_up(self, tally: Tally) -> None:
        """Make `tally` that of all blocks, everywhere."""
        flags = torch.tensor([tally.has_loss, tally.has_logits])
        counts = torch.stack([tally.loss_sums, tally.right]).double().cpu()
        together = torch.cat([counts, flags])
        dist.all_reduce(together, group=self._control)
        tally.loss_sums.copy_(together[0])
        tally.right.copy_(together[1])
        tally.has_loss, tally.has_logits = together[2:].bool().tolist()

    def close(self) -> None:
        """Training is over: wait until the next stage has everything."""
        if self._after is not None:
            self._after.close()
        dist.barrier(group=self._control)

    def _take(self, x: Tensor | None, stops: bool) -> Tensor:
        """This stage's input: its own batch, or what the stage before sent."""
        if self._before is None:
            assert x is not None
            self._mark = LAST if stops else MORE
            return x
        (h,), self._mark = self._before.receive()
        return h


OF_BLOCKS = ("rule", "optimizers", "ema")  # parts of a state that each process has its own share of


def _group(ranks: list[int] | None, backend: str | None = None) -> dist.ProcessGroup:
    # What is no group is so for the ranks outside of it, which do not use it.
    return dist.new_group(ranks, backend=backend)  # type: ignore[return-value]


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {k: _on_host(v) for k, v in value.items()}
    return value


def check_rule(rule: Rule, stages: int) -> None:
    """Refuse a rule whose blocks cannot train in as many processes."""
    if not isinstance(rule, LocalRule):
        needs = " and ".join(need.name or "" for need in rule.needs).lower()
        raise InputError(
            f"--runtime layer_parallel: {type(rule).__name__} needs {needs} information; only a "
            "rule that needs no more than forward information trains layers in parallel: DGL"
        )
    if stages > len(rule.blocks):
        raise InputError(
            f"--stages {stages}: the network is cut into {len(rule.blocks)} blocks; give at most "
            f"{len(rule.blocks)} stages, or cut it into more blocks"
        )


def check_starts(starts: Sequence[int], blocks: int, stages: int) -> None:
    """Refuse what does not divide `blocks` blocks into `stages` stages."""
    increasing = all(a < b for a, b in zip(starts, [*starts[1:], blocks], strict=True))
    if len(starts) != stages or starts[:1] != [0] or not increasing:
        raise InputError(
            f"layer_parallel(starts={list(starts)}): {stages} processes for {blocks} blocks; give "
            f"{stages} increasing block numbers below {blocks}, the first 0"
        )
