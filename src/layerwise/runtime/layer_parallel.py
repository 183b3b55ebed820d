"""Blocks in several processes: a stage trains its blocks on what the stage before sends it."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from layerwise.errors import InputError
from layerwise.inputs import Inputs
from layerwise.objectives.batch import Batch
from layerwise.rules.base import Done, LocalRule, Needs, OnBlock, Report, Rule, Scale
from layerwise.runs.metrics import Metrics
from layerwise.runtime.batchnorm import share_statistics
from layerwise.runtime.control import Control, anyone, new_group
from layerwise.runtime.link import LAST, MORE, PASSED, Receiver, Sender
from layerwise.runtime.reducer import Reducer
from layerwise.runtime.replay import Replay
from layerwise.runtime.runtime import StepOptions

# What the blocks of a rule may need, and live in different processes.
PARALLEL = Needs.FORWARD | Needs.NEXT


class LayerParallel:
    """The stage of this process. A `Runtime`.

    Every rank of the default process group makes one, with the same rule and the same `starts`, and
    then calls the same methods in the same order. Rank r owns blocks starts[r] to starts[r+1] - 1:
    it receives their input, calls the rule's own `local_step`, and sends `Done.out` and
    `Done.carry` on, without waiting for the stages behind it. `Done.back` goes to the stage before.
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

    The leader is the last stage, where the network's own loss is.

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
        assert isinstance(rule, LocalRule)
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
        self._waiting: deque[tuple[Done, Batch]] = deque()
        device = next(rule.parameters(), torch.zeros(())).device
        for left in range((stages - 1) * replicas):  # every rank makes every group, in this order
            right = left + replicas
            forward, backward = new_group([left, right], patient=True), None
            if Needs.NEXT in rule.needs:
                backward = new_group([left, right], patient=True)
            if dist.get_rank() == left:
                self._after = Sender(right, forward, depth)
                if backward is not None:  # as many as the way there lets through
                    self._late = Receiver(right, backward, 0, device, timeout_s)
            if dist.get_rank() == right:
                self._before = Receiver(left, forward, depth, device, timeout_s)
                if backward is not None:
                    self._back = Sender(left, backward, depth)

        _keep(rule, self.blocks)

    def backward(
        self,
        x: Tensor | None,
        y: Tensor,
        options: StepOptions = StepOptions(),
    ) -> Report:
        self._passing = True
        stops = options.stops
        if self._reducer is not None and self._before is None and options.completes:
            # The first stages of all replicas stop together.
            stops = anyone(stops, self._reducer.group)
        batch, h, carry = self._begin(x, y, options.scale, stops)
        batch.on_block = functools.partial(self._complete, options)
        with self.rule.blocks.passes(batch.augmented) as batch.passes:
            out = self._train(batch, h, carry, options.before_block)
        if self._reducer is not None:
            self._reducer.finish()
        return Report.of(batch, out, len(self.rule.blocks))

    def _train(
        self, batch: Batch, h: Inputs, carry: tuple[Tensor, ...], before_block: OnBlock
    ) -> Tensor:
        """The steps of this stage's blocks; gives its output."""
        rule, first, last = self.rule, self.blocks[0], self.blocks[-1]
        late = Needs.NEXT in rule.needs
        before: Done | None = None
        loss = back = None
        for k in self.blocks:
            before_block(k)
            done = rule.local_step(k, h, batch, *carry)
            if before is not None:
                loss = rule.learned(k - 1, before, done.back, batch)
            if k == first:
                back = done.back
            if k == last and self._after is not None:
                self._give(done, batch)
                self._learn_late(done, batch)
            # A block whose auxiliary networks learn late is complete once the next has run.
            if before is not None:
                batch.done(k - 1, loss, before.scores)
            if k == last or not late:
                batch.done(k, done.loss, done.scores)
            h, carry, before = done.out, done.carry, done if late else None
        if self._back is not None:
            self._back.send(*([] if back is None else [back]))
        return h

    def _complete(self, options: StepOptions, k: int) -> None:
        """The gradients of block k are complete in this process."""
        then = functools.partial(options.on_block, k)
        if self._reducer is not None and options.completes:
            self._reducer.add(self.rule.parameters_of(k), then)
        else:
            then()

    def _begin(
        self, x: Tensor | None, y: Tensor, scale: Scale, stops: bool
    ) -> tuple[Batch, Inputs, tuple[Tensor, ...]]:
        """The batch to train on, this stage's input, and what was carried with it."""
        if self._before is None or self._replay is None:
            batch = Batch(x, y, scale)
            self.rule.check(batch)
            own = self.rule.first_input(batch) if self._before is None else None
            h, *carry = self._take(own, stops)
            return batch, h, tuple(carry)
        # The stage before may be through with this pass, and wait for the others.
        while not self._passed and (not len(self._replay) or self._before.ready()):
            self._receive_for_replay()
        h, y, *carry = self._replay.take()
        x = carry.pop(0) if self._input_travels else None
        return Batch(x, y, scale), h, tuple(carry)

    def _receive_for_replay(self) -> None:
        assert self._before is not None
        assert self._replay is not None
        tensors, mark = self._before.receive()
        if tensors:
            self._replay.put(tensors)
        self._passed = mark in (PASSED, LAST)
        self._mark = LAST if mark == LAST else MORE

    def _give(self, done: Done, batch: Batch) -> None:
        """Pass this stage's output on."""
        assert self._after is not None
        if self._replay is None:
            self._after.send(done.out, *done.carry, mark=self._mark)
            return
        x = [batch.x] if self._input_travels else []
        send = self._after.send if self._mark == LAST else self._after.offer
        send(done.out, batch.labels, *x, *done.carry, mark=self._mark)

    def _learn_late(self, done: Done, batch: Batch) -> None:
        """Let this stage's last block learn what the next stage has found by now: of this batch or
        of those before."""
        if self._late is None:
            return
        self._waiting.append((done._replace(kept=None), batch))  # its weights will have moved
        self._take_late(wait=False)

    def _take_late(self, wait: bool) -> None:
        assert self._late is not None
        while self._waiting and (wait or self._late.ready()):
            (done, batch), (back, _) = self._waiting.popleft(), self._late.receive()
            if back:
                self.rule.learn(self.blocks[-1], done, back[0], batch)

    @torch.no_grad()
    def exits(
        self, rule: Rule, x: Tensor | None, y: Tensor, stops: bool = False
    ) -> Sequence[Tensor | None]:
        scores: list[Tensor | None] = [None] * len(rule.blocks)
        self._finish_pass()
        if self._mark == LAST:
            return scores
        # Replicas have unlike numbers of batches to evaluate: they stop together after that.
        h, *carry = self._take(x, stops and self._reducer is None)
        done = Done(h, carry=tuple(carry))
        with rule.blocks.passes(x) as passes:
            for k in self.blocks:
                done = rule.exit(k, done.out, passes, *done.carry)
                scores[k] = done.scores
        if self._after is not None:
            self._after.send(done.out, *done.carry, mark=self._mark)
        return scores

    def _finish_pass(self) -> None:
        """Before a collective step: drain what is left of the finished pass."""
        if self._replay is None or not self._passing:
            return
        while self._before is not None and not self._passed:
            self._receive_for_replay()
        self._passing = self._passed = False
        if self._after is not None:
            self._after.send(mark=LAST if self._mark == LAST else PASSED)

    def stops(self, asked: bool) -> bool:
        return self._mark == LAST  # the first stage decides, because it is ahead

    def gather(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        return self._control.gather(state)

    def add_up(self, tally: Metrics) -> None:
        self._control.add_up(tally)

    def close(self) -> None:
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
    if not isinstance(rule, LocalRule) or rule.needs & ~PARALLEL:
        needs = " and ".join(need.name or "" for need in Needs if need in rule.needs).lower()
        raise InputError(
            f"--runtime layer_parallel: {type(rule).__name__} needs {needs} information; only a "
            "rule that needs no more than forward information trains layers in parallel: DGL"
        )
    if Needs.NEXT in rule.needs and replay:
        raise InputError(
            f"--replay {replay}: {type(rule).__name__} waits for what the next block finds on the "
            "same batch, and not every batch gets there; leave --replay out"
        )
    if stages > len(rule.blocks):
        raise InputError(
            f"--stages {stages}: the network is cut into {len(rule.blocks)} blocks; give at most "
            f"{len(rule.blocks)} stages, or cut it into more blocks"
        )


def _keep(rule: LocalRule, blocks: Iterable[int]) -> None:
    """Keep only the weights of these blocks, and of their auxiliary networks, on their device.
    Other processes train the others, whose weights go to the CPU.

    Raises:
        InputError: a parameter is used by several blocks; a block that does not run by itself.
    """
    kept = set(blocks)
    rule.blocks.keep(kept)
    for k in set(range(len(rule.blocks))) - kept:
        for module in rule.auxiliary(k):
            module.to("cpu")


def check_starts(starts: Sequence[int], blocks: int, stages: int) -> None:
    """Refuse what does not divide `blocks` blocks into `stages` stages."""
    increasing = all(a < b for a, b in zip(starts, [*starts[1:], blocks], strict=True))
    if len(starts) != stages or starts[:1] != [0] or not increasing:
        raise InputError(
            f"layer_parallel(starts={list(starts)}): {stages} processes for {blocks} blocks; give "
            f"{stages} increasing block numbers below {blocks}, the first 0"
        )
