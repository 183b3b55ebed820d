"""Blocks in several processes: a stage trains its blocks on what the stage before sends it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from layerwise.batch import Batch, Report, identity
from layerwise.errors import InputError
from layerwise.rule import LocalRule, OnBlock, Rule, Scale
from layerwise.runtime.link import MORE, Receiver, Sender


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
        first, last: whether this stage is.
        mark: what came with the last batch (`link`): the first stage's word to those behind it.

    Raises:
        InputError: a rule that needs more than forward information; starts that are no division of
            the blocks into as many stages as there are ranks.
    """

    def __init__(
        self, rule: Rule, starts: Sequence[int], depth: int = 2, timeout_s: float = 600.0
    ):
        rank, world = dist.get_rank(), dist.get_world_size()
        if not isinstance(rule, LocalRule):
            raise InputError(
                f"layer_parallel: {type(rule).__name__} needs {rule.needs}; only a rule that needs "
                "no more than forward information can train layers in parallel, such as DGL"
            )
        check_starts(starts, len(rule.blocks), world)
        ends = [*starts[1:], len(rule.blocks)]
        self.rule, self.rank = rule, rank
        self.blocks = range(starts[rank], ends[rank])
        self.first, self.last = rank == 0, rank == world - 1
        self.mark = MORE
        self._before: Receiver | None = None
        self._after: Sender | None = None
        for left in range(world - 1):  # every rank makes every group, in the same order
            group = dist.new_group([left, left + 1])
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
        mark: int = MORE,
    ) -> Report:
        """This stage's part of `rule.backward(x, y)`.

        Args:
            x: a batch, (B, ...); None where this stage is not the first and none of its objectives
                reads it.
            y: its labels, (B,) or (B, T).
            scale: as in `Rule.backward`.
            on_block: as in `Rule.backward`; called for this stage's blocks.
            mark: the first stage's word to those behind it.

        Returns:
            The report with what this stage's blocks found, None for the others; its logits are the
            network's output on the last stage, and this stage's elsewhere.
        """
        batch = Batch(y if x is None else x, y, scale)
        h, self.mark = self._take(batch, mark)
        for i in self.blocks:
            h = self.rule.local_backward(i, h, batch)
            if on_block is not None:
                on_block(i)
        if self._after is not None:
            self._after.send(h, mark=self.mark)
        return batch.report(h, len(self.rule.blocks))

    @torch.no_grad()
    def exits(self, x: Tensor | None, y: Tensor, mark: int = MORE) -> list[Tensor | None]:
        """This stage's part of `rule.exits(x)`: None for the blocks of other stages."""
        batch = Batch(y if x is None else x, y)
        scores: list[Tensor | None] = [None] * len(self.rule.blocks)
        h, self.mark = (x, mark) if self._before is None else self._received()
        assert h is not None
        for i in self.blocks:
            h, scores[i] = self.rule.exit(i, h)
        if self._after is not None:
            self._after.send(h, mark=self.mark)
        return scores

    def close(self) -> None:
        """Wait until the next stage has everything."""
        if self._after is not None:
            self._after.close()

    def _take(self, batch: Batch, mark: int) -> tuple[Tensor, int]:
        if self._before is None:
            return self.rule.enter(batch), mark
        return self._received()

    def _received(self) -> tuple[Tensor, int]:
        assert self._before is not None
        tensors, mark = self._before.receive()
        return tensors[0], mark


def check_starts(starts: Sequence[int], blocks: int, stages: int) -> None:
    """Refuse what does not divide `blocks` blocks into `stages` stages."""
    increasing = all(a < b for a, b in zip(starts, [*starts[1:], blocks], strict=True))
    if len(starts) != stages or starts[:1] != [0] or not increasing:
        raise InputError(
            f"layer_parallel(starts={list(starts)}): {stages} processes for {blocks} blocks; give "
            f"{stages} increasing block numbers below {blocks}, the first 0"
        )
