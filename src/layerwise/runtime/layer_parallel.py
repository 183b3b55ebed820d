"""Blocks in several processes: a stage trains its blocks on what the stage before sends it."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from layerwise.errors import InputError
from layerwise.inputs import Inputs
from layerwise.objectives.batch import Batch, Report, identity
from layerwise.rules.base import ForwardRule, Needs, OnBlock, Rule, Scale
from layerwise.runs.metrics import Metrics
from layerwise.runtime.batchnorm import share_statistics
from layerwise.runtime.control import Control, anyone, new_group
from layerwise.runtime.link import LAST, MORE, PASSED, Receiver, Sender
from layerwise.runtime.reducer import Reducer, nothing
from layerwise.runtime.replay import Replay


class LayerParallel:
    """The stage of this process.

    Every rank of the default process group makes one, with the same rule and the same `starts`, and
    then calls the same methods in the same order. Rank r owns blocks starts[r] to starts[r+1] - 1:
    it receives their input, calls the rule's own `local_backward`, and sends the detached output
    on, with what the rule has left in `Batch.along`, without waiting for the stages behind it.
    Labels do not travel: every rank reads them from the same data.

    In step with each other, every block gets the gradient of the serial loop for the same batches
    in the same order, bit for bit: no block needs anything from the blocks after it, and each has
    stepped as often as it would have.

    With `replay` no stage waits for another (Belilovsky et al. 2020, arXiv:1901.08164, algorithm
    2): one that is faster than the stage before it uses the newest batches again, and what a slow
    one has no room for is left out. Each makes as many steps. Labels then travel with activations.

    Args:
        rule: with all blocks; only those of this stage are used here.
        starts: number of each stage's first block, increasing; the first is 0.
        depth: batches under way between two stages at most, on either side.
        timeout_s: how long to wait for another stage before it counts as hung.
        replay: how many batches a stage keeps to use again; 0 to be in step.
        replicas: how many processes hold each stage, each on its own part of every batch
            (`Loader(part=...)`): rank = stage * replicas + replica. A block's gradients are
            averaged over them while the next block runs.
        sync_batchnorm: share BatchNorm's statistics of a batch over replicas, on accelerators; else
            they are each one's own, and the run keeps the last one's.

    Attributes:
        blocks: numbers of this stage's blocks.
        leader: whether this process keeps the run's files: the last stage, where the network's
            own loss is.
        reads_input: whether this stage needs the images, and not the labels alone.
        replica: its number among those that hold this stage.
        counts: whether what a run has counted so far is kept here, and not by another replica.

    Raises:
        InputError: a rule that needs more than forward information; starts that are no division of
            the blocks into as many stages as there are ranks.
    """

    def __init__(
        self,
        rule: Rule,
        starts: Sequence[int],
        depth: int = 2,
        timeout_s: float = 600.0,
        replay: int = 0,
        replicas: int = 1,
        sync_batchnorm: bool = False,
    ):
        world = dist.get_world_size()
        if replicas < 1 or world % replicas:
            raise InputError(
                f"layer_parallel(replicas={replicas}): {world} processes do not divide into as "
                "many; give a divisor"
            )
        stage, self.replica = divmod(dist.get_rank(), replicas)
        stages = world // replicas
        check_rule(rule, stages, replay)
        assert isinstance(rule, ForwardRule)
        check_starts(starts, len(rule.blocks), stages)
        ends = [*starts[1:], len(rule.blocks)]
        self.rule = rule
        rule.synchronised = True
        self.blocks = range(starts[stage], ends[stage])
        self.counts = self.replica == replicas - 1
        self.leader = stage == stages - 1 and self.counts
        self.reads_input = stage == 0 or rule.reads_input(self.blocks)
        self._replay: Replay[list[Tensor]] | None = Replay(replay) if replay else None
        self._input_travels = any(
            rule.reads_input(range(start, end))
            for start, end in zip(starts[1:], ends[1:], strict=True)
        )
        self._passing = self._passed = False  # a training pass is under way; it is over before us
        self._mark = MORE  # that came with the last batch: the first stage's word to all
        self._control = Control(stages)
        self._reducer: Reducer | None = None
        for k in range(stages if replicas > 1 else 0):
            ranks = [k * replicas + r for r in range(replicas)]
            gradients, statistics = new_group(ranks), new_group(ranks) if sync_batchnorm else None
            if k == stage:
                self._reducer = Reducer(gradients)
            if k == stage and sync_batchnorm:
                share_statistics(rule, statistics)
        self._before: Receiver | None = None
        self._after: Sender | None = None
        # The way back, for a rule that wants it: what the next stage found of its input's gradient.
        self._back: Sender | None = None
        self._late: Receiver | None = None
        self._waiting: deque[tuple[Tensor, Batch]] = deque()
        device = next(rule.parameters(), torch.zeros(())).device
        for left in range((stages - 1) * replicas):  # every rank makes every group, in this order
            right = left + replicas
            forward, backward = new_group([left, right], patient=True), None
            if rule.sends_back:
                backward = new_group([left, right], patient=True)
            if dist.get_rank() == left:
                self._after = Sender(right, forward, depth)
                if backward is not None:  # as many as the way there lets through
                    self._late = Receiver(right, backward, 0, device, timeout_s)
            if dist.get_rank() == right:
                self._before = Receiver(left, forward, depth, device, timeout_s)
                if backward is not None:
                    self._back = Sender(left, backward, depth)

        rule.keep(self.blocks)

    def backward(
        self,
        x: Tensor | None,
        y: Tensor,
        *,
        scale: Scale = identity,
        on_block: OnBlock | None = None,
        before_block: OnBlock | None = None,
        stops: bool = False,
        completes: bool = True,
    ) -> Report:
        """This stage's part of `rule.backward(x, y)`.

        Args:
            x: a batch, (B, ...); None where this stage is not the first and none of its objectives
                reads it.
            y: its labels, (B,) or (B, T).
            scale: as in `Rule.backward`.
            on_block: as in `Rule.backward`; called for this stage's blocks.
            before_block: called with a block's number before it runs.
            stops: on the first stage, that all are to stop after this batch.
            completes: whether the gradients are complete after this batch; else more are to come,
                and replicas do not average them yet.

        Returns:
            The report with what this stage's blocks found, None for the others; its logits are the
            network's output on the last stage, and this stage's elsewhere.
        """
        self._passing = True
        if self._reducer is not None and self._before is None and completes:
            stops = anyone(
                stops, self._reducer.group
            )  # the first stages of all replicas stop together
        batch, h = self._begin(x, y, scale, stops)
        with self.rule.blocks.passes(batch.drawn) as batch.passes:
            h = self._train(batch, h, on_block, before_block, completes)
        if self._reducer is not None:
            self._reducer.finish()
        if self._back is not None:
            target = batch.targets.pop(self.blocks[0] - 1, None)
            self._back.send(*([] if target is None else [target]))
        return batch.report(h, len(self.rule.blocks))

    def _train(
        self,
        batch: Batch,
        h: Inputs,
        on_block: OnBlock | None,
        before_block: OnBlock | None,
        completes: bool,
    ) -> Tensor:
        """The steps of this stage's blocks; gives its output."""
        for i in self.blocks:
            if before_block is not None:
                before_block(i)
            before, h = h, self.rule.local_backward(i, h, batch)
            if i > self.blocks[0]:
                self.rule.learn(i - 1, before, batch)
            if i == self.blocks[-1] and self._after is not None:
                self._give(h, batch)
                self._learn_late(h, batch)
            # A block whose auxiliary networks learn late is complete once those before it have.
            done = [i - 1] if self.rule.sends_back and i > self.blocks[0] else []
            done += [i] if not self.rule.sends_back or i == self.blocks[-1] else []
            for k in done:
                then = functools.partial(on_block, k) if on_block is not None else nothing
                if self._reducer is not None and completes:
                    self._reducer.add(self.rule.parameters_of(k), then)
                else:
                    then()
        return h

    def _begin(
        self, x: Tensor | None, y: Tensor, scale: Scale, stops: bool
    ) -> tuple[Batch, Tensor]:
        """The batch to train on, and this stage's input."""
        if self._before is None or self._replay is None:
            batch = Batch(x, y, scale)
            self.rule.check_batch(batch)
            h, *along = self._take(self.rule.enter(batch) if self._before is None else None, stops)
            batch.along = tuple(along)
            return batch, h
        # The stage before may be through with this pass, and wait for the others.
        while not self._passed and (not len(self._replay) or self._before.ready()):
            self._receive_for_replay()
        h, y, *along = self._replay.take()
        x = along.pop(0) if self._input_travels else y
        return Batch(x if self._input_travels else None, y, scale, along=tuple(along)), h

    def _receive_for_replay(self) -> None:
        assert self._before is not None
        assert self._replay is not None
        tensors, mark = self._before.receive()
        if tensors:
            self._replay.put(tensors)
        self._passed = mark in (PASSED, LAST)
        self._mark = LAST if mark == LAST else MORE

    def _give(self, h: Tensor, batch: Batch) -> None:
        """Pass this stage's output on."""
        assert self._after is not None
        if self._replay is None or self._mark == LAST:
            self._after.send(*self._message(h, batch), mark=self._mark)
        else:
            self._after.offer(*self._message(h, batch), mark=self._mark)

    def _message(self, h: Tensor, batch: Batch) -> list[Tensor]:
        if self._replay is None:
            return [h, *batch.along]
        return [h, batch.y, *([batch.x] if self._input_travels else []), *batch.along]

    def _learn_late(self, h: Tensor, batch: Batch) -> None:
        """Let this stage's last block learn what the next stage has found by now: of this batch or
        of those before."""
        if self._late is None:
            return
        last = self.blocks[-1]
        batch.synthetic.pop(last, None)  # by then its weights will have moved
        self._waiting.append((h, batch))
        self._take_late(wait=False)

    def _take_late(self, wait: bool) -> None:
        assert self._late is not None
        while self._waiting and (wait or self._late.ready()):
            (h, batch), (target, _) = self._waiting.popleft(), self._late.receive()
            if target:
                batch.targets[self.blocks[-1]] = target[0]
                self.rule.learn(self.blocks[-1], h, batch)

    @torch.no_grad()
    def exits(
        self, rule: Rule, x: Tensor | None, y: Tensor, stops: bool = False
    ) -> Sequence[Tensor | None]:
        """This stage's part of `rule.exits(x)`: None for the blocks of other stages. `rule` may be
        an average of the trained one's weights."""
        scores: list[Tensor | None] = [None] * len(rule.blocks)
        self._finish_pass()
        if self._mark == LAST:
            return scores
        # Replicas have unlike numbers of batches to evaluate: they stop together after that.
        (h,) = self._take(x, stops and self._reducer is None)
        with rule.blocks.passes(x) as passes:
            for i in self.blocks:
                h, scores[i] = rule.exit(i, h, passes)
        if self._after is not None:
            self._after.send(h, mark=self._mark)
        return scores

    def _finish_pass(self) -> None:
        """In front of what all do in step: take what is left of the pass that is over."""
        if self._replay is None or not self._passing:
            return
        while self._before is not None and not self._passed:
            self._receive_for_replay()
        self._passing = self._passed = False
        if self._after is not None:
            self._after.send(mark=LAST if self._mark == LAST else PASSED)

    def stops(self, asked: bool) -> bool:
        """Whether all stop after the batch just done: the first stage decides, for it is ahead."""
        return self._mark == LAST

    def gather(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """The states of all processes as one; None but for the leader."""
        return self._control.gather(state)

    def add_up(self, tally: Metrics) -> None:
        """Make `tally` that of all blocks and all parts of the batches, everywhere."""
        self._control.add_up(tally)

    def close(self) -> None:
        """Training is over: wait until the next stage has everything, and its answers are here."""
        self._finish_pass()
        if self._late is not None:
            self._take_late(wait=True)
        for sender in (self._after, self._back):
            if sender is not None:
                sender.close()
        self._control.close()

    def _take(self, x: Tensor | None, stops: bool) -> list[Tensor]:
        """This stage's input and what came along: its own batch, or what the stage before sent."""
        if self._before is None:
            assert x is not None
            self._mark = LAST if stops else MORE
            return [x]
        tensors, self._mark = self._before.receive()
        return tensors


def check_rule(rule: Rule, stages: int, replay: int = 0) -> None:
    """Refuse a rule whose blocks cannot train in as many processes."""
    if not isinstance(rule, ForwardRule) or rule.needs != Needs.FORWARD:
        needs = " and ".join(need.name or "" for need in rule.needs).lower()
        raise InputError(
            f"--runtime layer_parallel: {type(rule).__name__} needs {needs} information; only a "
            "rule that needs no more than forward information trains layers in parallel: DGL"
        )
    if rule.sends_back and replay:
        raise InputError(
            f"--replay {replay}: {type(rule).__name__} waits for what the next block finds on the "
            "same batch, and not every batch gets there; leave --replay out"
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
