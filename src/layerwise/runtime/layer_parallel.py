"""Blocks in several processes: each stage trains its blocks on what the stage before sends."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from layerwise.errors import InputError
from layerwise.inputs import Inputs
from layerwise.objectives.batch import Batch
from layerwise.rules.base import (
    Done,
    LocalRule,
    Needs,
    Report,
    Rule,
    Scale,
    explain,
)
from layerwise.rules.delayed_gradient import DelayedGradient
from layerwise.runs.metrics import Metrics
from layerwise.runs.released import release
from layerwise.runtime.batchnorm import share_statistics
from layerwise.runtime.control import (
    Control,
    anyone,
    backend_of_gradients,
    device_of,
    new_group,
)
from layerwise.runtime.delayed import DelayedStage, check_delayed
from layerwise.runtime.neighbours import connect
from layerwise.runtime.reducer import Reducer
from layerwise.runtime.runtime import StepOptions

# What a rule may need if its blocks are to train in different processes.
PARALLEL = Needs.FORWARD | Needs.NEXT


class LayerParallel:
    """The stage of this process. A `Runtime`.

    Every rank of the default process group makes one, with the same rule and the same `starts`, and
    then calls the same methods in the same order. Rank r owns blocks starts[r] to starts[r+1] - 1:
    it receives their input, calls the rule's own `local_step`, and sends `Done.out` and
    `Done.carry` on, without waiting for the stages after it. `Done.back` goes to the stage before.
    Labels do not travel: every rank reads them from the same data. Under `DelayedGradient`,
    gradients travel back (`delayed.py`).

    Without `replay` every block gets the gradient of the serial loop for the same batches in the
    same order, bit for bit: no block needs anything from the blocks after it, and each has made the
    same number of steps as in the serial loop.

    With `replay` no stage waits for another (Belilovsky et al. 2020, arXiv:1901.08164, algorithm
    2): a stage that is faster than the stage before it uses the newest batches again, and a batch
    for which a slower stage has no room is left out. All stages make the same number of steps.
    Labels then travel with the activations.

    The leader is the last stage, because the network's own loss is there.

    Args:
        rule: the rule, with all blocks; this stage uses only its own.
        starts: number of each stage's first block, increasing; the first is 0.
        depth: largest number of batches on their way between two stages, on either side.
        timeout_s: seconds to wait for another stage before it counts as hung.
        replay: number of batches that a stage keeps to use again; 0 to use every batch once.
        replicas: number of processes that hold each stage, each with its own part of every batch
            (`Loader(part=...)`): rank = stage * replicas + replica. A block's gradients are
            averaged over them while the next block runs.
        sync_batchnorm: share BatchNorm's statistics of a batch over the replicas, on accelerators;
            otherwise each replica has its own, and the run keeps those of the last.

    Raises:
        InputError: a rule that needs more than forward information; starts that do not divide the
            blocks into one stage for each rank; replicas that do not divide the ranks.
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
        stages = _stages(replicas)
        stage, self.replica = divmod(dist.get_rank(), replicas)
        check_rule(rule, stages, replay, replicas)
        assert isinstance(rule, LocalRule | DelayedGradient)
        check_starts(starts, len(rule.blocks), stages)
        parts = [range(*pair) for pair in zip(starts, [*starts[1:], len(rule.blocks)], strict=True)]
        rule.synchronised = True
        self.rule, self.blocks = rule, parts[stage]
        self.counts = self.replica == replicas - 1
        self.leader = stage == stages - 1 and self.counts
        self.reads_input = stage == 0 or rule.reads_input(self.blocks)
        self._replays = replay > 0
        self._input_travels = any(rule.reads_input(part) for part in parts[1:])
        example = rule.blocks.example
        if replay and self._input_travels and not isinstance(example, Tensor | None):
            raise InputError(
                f"layer_parallel(replay={replay}): later blocks or their heads read the network's "
                "inputs, which are several, but a replayed batch has one tensor; leave replay out"
            )
        # Every process makes all process groups, in this order.
        self._control = Control(stages)
        self._reducer = _join_replicas(rule, stage, stages, replicas, sync_batchnorm)
        self._first_stages = new_group(list(range(replicas)), "gloo")
        delayed = isinstance(rule, DelayedGradient)
        backward, end = delayed or Needs.NEXT in rule.needs, self.blocks[-1]
        self._before, self._after = connect(
            rule, end, stages, replicas, backward, depth, replay, timeout_s
        )
        _keep(rule, self.blocks, self.leader)
        self._delayed: DelayedStage | None = None
        if isinstance(rule, DelayedGradient):
            self._delayed = DelayedStage(rule, self.blocks, stages - 1 - stage)

    def backward(
        self,
        x: Tensor | None,
        y: Tensor,
        options: StepOptions = StepOptions(),
    ) -> Report:
        self._before.begin_step()
        stops = options.stops
        if self._reducer is not None and self._before.first and options.completes:
            # The first stages of all replicas stop together.
            stops = anyone(stops, self._first_stages)
        batch, h, carry = self._begin(x, y, options.scale, stops)
        batch.on_block = functools.partial(self._complete, options)
        with self.rule.blocks.passes(batch.augmented) as batch.passes:
            try:
                out = self._train(batch, h, carry, options)
            except Exception as error:
                explain(self.rule, error, x)
                raise
        if self._reducer is not None:
            self._reducer.finish()
        return Report.of(batch, out, len(self.rule.blocks))

    def _train(
        self, batch: Batch, h: Inputs, carry: tuple[Tensor, ...], options: StepOptions
    ) -> Tensor:
        """Make the steps of this stage's blocks; return the output of the last, (B, ...)."""
        before_block = options.before_block
        if self._delayed is not None:
            return self._delayed.train(
                batch, h, self._before, self._after, before_block, options.completes
            )
        rule, first, last = self.rule, self.blocks[0], self.blocks[-1]
        assert isinstance(rule, LocalRule)
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
                self._after.learn_late(done, batch)
            # A block whose auxiliary networks learn late is complete after the next block's step.
            if before is not None:
                batch.done(k - 1, loss, before.scores)
            if k == last or not late:
                batch.done(k, done.loss, done.scores)
            h, carry = done.out, done.carry
            before = done._replace(carry=(), back=None) if late else None
        self._before.send_back(back)
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
        """The batch to train on, this stage's input, and the tensors that travelled with it."""
        if self._before.first or not self._replays:
            batch = Batch(x, y, scale)
            self.rule.check(batch)
            own = self.rule.first_input(batch) if self._before.first else None
            h, *carry = self._before.take(own, stops)
            return batch, h, tuple(carry)
        h, y, *carry = self._before.take_replayed()
        x = carry.pop(0) if self._input_travels else None
        return Batch(x, y, scale), h, tuple(carry)

    def _give(self, done: Done, batch: Batch) -> None:
        """Send this stage's output to the stage after."""
        assert self._after is not None
        stopping = self._before.stopping
        if not self._replays:
            self._after.give(done.out, *done.carry, stopping=stopping)
            return
        x = [batch.x] if self._input_travels else []
        message = [done.out, batch.labels, *x, *done.carry]
        self._after.give(*message, stopping=stopping, droppable=True)

    @torch.no_grad()
    def exits(
        self, rule: Rule, x: Tensor | None, y: Tensor, stops: bool = False
    ) -> Sequence[Tensor | None]:
        scores: list[Tensor | None] = [None] * len(rule.blocks)
        self._finish_pass()
        if self._before.stopping:
            return scores
        # Replicas evaluate different numbers of batches, so they stop together afterwards.
        h, *carry = self._before.take(x, stops and self._reducer is None)
        done = Done(h, carry=tuple(carry))
        with rule.blocks.passes(x) as passes:
            for k in self.blocks:
                done = rule.exit(k, done.out, passes, *done.carry)
                scores[k] = done.scores
        if self._after is not None:
            self._after.give(done.out, *done.carry, stopping=self._before.stopping)
        return scores

    def _finish_pass(self) -> None:
        """Before a collective step: end the training pass, here and in the stage after."""
        if self._before.finish_pass() and self._after is not None:
            self._after.end_pass(self._before.stopping)

    def stops(self, asked: bool) -> bool:
        return self._before.stopping

    def agree(self, stops: bool) -> bool:
        # With replay, stages make the same step at different times: one may save what is due while
        # another stops. What arrives meanwhile is taken, so that no sender waits for room.
        return self._control.any(stops, self._before.keep_arrived) if self._replays else stops

    def gather(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        return self._control.gather(state)

    def add_up(self, tally: Metrics) -> None:
        self._control.add_up(tally)

    def close(self) -> None:
        self._finish_pass()
        if self._after is not None:
            self._after.close()
        self._before.close()
        if self._after is not None:
            self._after.closed()
        self._control.close()


def check_rule(rule: Rule, stages: int, replay: int = 0, replicas: int = 1) -> None:
    """Refuse a rule whose blocks cannot train in several processes.

    Args:
        rule: the rule.
        stages: number of stages.
        replay: number of batches that a stage keeps; 0 for none.
        replicas: number of processes that hold each stage.

    Raises:
        InputError: the rule needs more than forward information, waits for the next block and
            `replay` is given, has fewer blocks than there are stages, or has no replicas.
    """
    if isinstance(rule, DelayedGradient):
        check_delayed(rule, replicas, replay)
        _check_stages(rule, stages)
        return
    if not isinstance(rule, LocalRule) and not rule.needs & ~PARALLEL:
        raise InputError(
            f"--runtime layer_parallel: {type(rule).__name__} is no LocalRule; only a LocalRule, "
            "whose local_step trains one block, trains layers in parallel: DGL"
        )
    if rule.needs & ~PARALLEL:
        needs = " and ".join(need.name or "" for need in Needs if need in rule.needs).lower()
        raise InputError(
            f"--runtime layer_parallel: {type(rule).__name__} needs {needs} information; only a "
            "rule that needs no more than forward information trains layers in parallel: DGL; or "
            "backpropagation a step late: DelayedGradient"
        )
    if Needs.NEXT in rule.needs and replay:
        raise InputError(
            f"--replay {replay}: {type(rule).__name__} waits for a gradient from the next block on "
            "the same batch, and with replay not every batch gets there; leave --replay out"
        )
    _check_stages(rule, stages)


def _check_stages(rule: Rule, stages: int) -> None:
    if stages > len(rule.blocks):
        raise InputError(
            f"--stages {stages}: the network is cut into {len(rule.blocks)} blocks; give at most "
            f"{len(rule.blocks)} stages, or cut it into more blocks"
        )


def check_starts(starts: Sequence[int], blocks: int, stages: int) -> None:
    """Refuse `starts` that do not divide the blocks into stages.

    Raises:
        InputError: another number of starts than stages; a first start that is not 0; numbers that
            do not increase.
    """
    increasing = all(a < b for a, b in zip(starts, [*starts[1:], blocks], strict=True))
    if len(starts) != stages or starts[:1] != [0] or not increasing:
        raise InputError(
            f"layer_parallel(starts={list(starts)}): {stages} processes for {blocks} blocks; give "
            f"{stages} increasing block numbers below {blocks}, the first 0"
        )


def _stages(replicas: int) -> int:
    """The number of stages."""
    world = dist.get_world_size()
    if replicas < 1 or world % replicas:
        raise InputError(
            f"layer_parallel(replicas={replicas}): {world} processes do not divide into groups of "
            "that size; give a divisor"
        )
    return world // replicas


def _join_replicas(
    rule: LocalRule | DelayedGradient, stage: int, stages: int, replicas: int, sync_batchnorm: bool
) -> Reducer | None:
    """What averages gradients over the replicas of this stage; None if there is one replica."""
    reducer: Reducer | None = None
    backend = backend_of_gradients(device_of(rule)) if replicas > 1 else "gloo"
    for k in range(stages if replicas > 1 else 0):
        ranks = [k * replicas + r for r in range(replicas)]
        gradients = new_group(ranks, backend)
        statistics = new_group(ranks, backend) if sync_batchnorm else None
        if k == stage:
            reducer = Reducer(gradients)
        if k == stage and sync_batchnorm:
            share_statistics(rule, statistics)
    return reducer


def _keep(rule: LocalRule | DelayedGradient, blocks: Iterable[int], leader: bool) -> None:
    """Keep only the weights of these blocks and of their auxiliary networks.

    The other weights, which other processes train, go to the CPU in the leader, which writes all
    of them to files; the other processes give their memory back (`released.py`).

    Raises:
        InputError: a parameter is used by several blocks; a block that does not run by itself.
    """
    kept = set(blocks)
    rule.blocks.keep(kept)
    for k in set(range(len(rule.blocks))) - kept:
        for module in rule.auxiliary(k):
            module.to("cpu")
    if not leader:
        own = {p for k in kept for p in rule.parameters_of(k)}
        release(p for p in rule.parameters() if p not in own)
