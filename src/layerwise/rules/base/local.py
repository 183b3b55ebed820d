"""The base class of rules whose blocks need nothing from later blocks in order to learn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from layerwise.errors import InputError
from layerwise.inputs import Inputs, reads_inputs
from layerwise.objectives.batch import Batch, OnBlock
from layerwise.rules.base.differentiate import differentiate, kept_graphs
from layerwise.rules.base.rule import Done, Needs, Rule


class LocalRule(Rule):
    """The base class of rules in which a block's gradient depends only on its input and the labels,
    so that blocks can train in different processes.

    By default every block k minimises its own objective. With sg[] a stopped gradient:

        h_k = f_k(sg[h_{k-1}]),    grad_k = d objective_k(h_k) / d (f_k, head_k)

    The input of a block does not require grad, so no gradient with respect to it is computed. A
    block without an objective is not trained. A rule that trains its blocks in another way writes
    `local_step`; `step` calls it for one block after the other.

    Args:
        blocks: as in `Rule`.
        objectives: as in `Rule`.
        criterion: as in `Rule`.

    Raises:
        InputError: as in `Rule`.
    """

    needs = Needs.FORWARD

    @property
    def one_pass(self) -> bool:  # type: ignore[override]
        """Whether one backward pass completes the gradient of each parameter that it reaches. So it
        is in the default step, if no two blocks use the same parameter."""
        own, base = type(self), LocalRule
        if own.step is not base.step or own.local_step is not base.local_step:
            return False
        found = [id(p) for k in range(len(self.blocks)) for p in self.parameters_of(k)]
        alone = not self.blocks.shares and not self.blocks.shared
        return alone and len(found) == len(set(found))

    @property
    def accumulates(self) -> bool:
        """Whether the rule can `accumulate`: its blocks only learn one after the other."""
        return Needs.NEXT not in self.needs and type(self).step is LocalRule.step

    def local_step(self, k: int, h: Any, batch: Batch) -> Done:
        """Make block k's step. When this returns, the block's gradients are in `.grad`, and its
        graph is freed.

        A rule that carries further tensors from block to block (`Done.carry`) takes them as further
        arguments after `batch`, with defaults, because the first block is given none.

        Args:
            k: number of the block.
            h: its input, ((V + views) B, ...), detached (`Reading`); usually (B, ...). For the
                first block, `first_input(batch)`.
            batch: the step's batch.

        Returns:
            What the block passes on and reports.
        """
        objective = self.objectives.get(k)
        if objective is None:
            with torch.no_grad():
                return Done(self.run(k, h, batch)[0])
        last = k == len(self.blocks) - 1
        with self.deferring_scores(batch) if last else contextlib.nullcontext():
            h, activity = self.run(k, h, batch)  # h_k = f_k(sg[h_{k-1}])
            loss, scores = self.loss(k, activity, batch, objective)
        differentiate(loss, batch.scale)  # d objective_k / d (f_k, head_k)
        return Done(h.detach(), loss.detach(), scores)

    def accumulate(
        self, parts: Sequence[tuple[Inputs, Tensor]], on_block: OnBlock | None = None
    ) -> None:
        """Add the mean gradient of several micro-batches to `.grad`, block by block: each block
        runs on all micro-batches before the next one begins.

        The gradients are those of one `backward` for each micro-batch, bit for bit, but
        `on_block` may step a block and free its gradients before the next block runs. Alive are the
        graph of one block on one micro-batch, and the inputs of one block on all of them.

        Args:
            parts: inputs and labels of each micro-batch, as in `backward`; a micro-batch counts by
                its number of labels.
            on_block: as in `backward`.

        Raises:
            InputError: the rule sends tensors back to the block before (`Needs.NEXT`) or has a step
                of its own; otherwise as in `backward`.
        """
        if not self.accumulates:
            raise InputError(
                f"{type(self).__name__}.accumulate: this rule's blocks do not only learn one after "
                "the other; call backward on every micro-batch, with scale=lambda loss: loss / n"
            )
        rows = sum(len(y) for _, y in parts)
        batches = [Batch(x, y, partial(_shared, share=len(y) / rows)) for x, y in parts]
        with contextlib.ExitStack() as open_passes:
            if self.blocks.shares:
                open_passes.enter_context(kept_graphs())
            for batch in batches:
                self.check(batch)
                batch.passes = open_passes.enter_context(self.blocks.passes(batch.augmented))
            done = [Done(self.first_input(batch)) for batch in batches]
            for k in range(len(self.blocks)):
                for j, batch in enumerate(batches):
                    found = self._checked(k, self.local_step(k, done[j].out, batch, *done[j].carry))
                    done[j] = Done(found.out, carry=found.carry)
                    del found
                if on_block is not None:
                    on_block(k)

    def learn(self, k: int, done: Done, back: Tensor, batch: Batch) -> Tensor | None:
        """Under `Needs.NEXT`, make the step of block k's auxiliary networks with the tensor that
        block k+1 sent back. This may come after steps on later batches, when weights have changed.
        Does nothing by default.

        Args:
            k: number of the block.
            done: the result of its `local_step`; without `kept` if weights may have changed since.
            back: `Done.back` of block k+1.
            batch: the step's batch.

        Returns:
            The loss of the auxiliary networks, (), if it is to be the block's reported loss;
            otherwise None.
        """
        return None

    def learned(self, k: int, done: Done, back: Tensor | None, batch: Batch) -> Tensor | None:
        """Call `learn` if block k+1 sent a tensor back; return block k's reported loss, () or
        None."""
        loss = None if back is None else self.learn(k, done, back, batch)
        return done.loss if loss is None else loss

    def first_input(self, batch: Batch) -> Inputs:
        """The input of the first block, ((V + views) B, ...), detached."""
        return self.reading.first_input(batch)

    def reads_input(self, blocks: Iterable[int]) -> bool:
        """Whether any of these blocks or their objectives reads the network's inputs, apart from
        the first block, of which they are the input. Heads read padding masks, which only a
        network that takes several inputs is given."""
        blocks = list(blocks)
        objectives = [o for k in blocks if (o := self.objectives.get(k)) is not None]
        example = self.blocks.example
        masks = example is not None and not isinstance(example, Tensor)
        return (
            any(o.reads_input for o in objectives)
            or (masks and any(reads_inputs(m) for o in objectives for m in o.modules()))
            or any(k > 0 and self.blocks.reads_inputs(k) for k in blocks)
        )

    def step(self, batch: Batch) -> Tensor:
        last, late = len(self.blocks) - 1, Needs.NEXT in self.needs
        h, carry, before = self.first_input(batch), (), None
        for k in range(last + 1):
            done = self._checked(k, self.local_step(k, h, batch, *carry))
            if late and before is not None:
                batch.done(k - 1, self.learned(k - 1, before, done.back, batch), before.scores)
            if k == last or not late:
                batch.done(k, done.loss, done.scores)
            h, carry = done.out, done.carry
            before = done._replace(carry=(), back=None) if late else None
            del done  # the block's scores are freed before the next block runs
        return h

    def _checked(self, k: int, done: object) -> Done:
        """Refuse what is no `Done` of this rule: a mistake in its `local_step`."""
        call = f"{type(self).__name__}.local_step, block {k}"
        if not isinstance(done, Done):
            raise InputError(
                f"{call}: returned {type(done).__name__}; return Done(h.detach(), loss, scores)"
            )
        if done.out.requires_grad or (done.back is not None and done.back.requires_grad):
            raise InputError(f"{call}: Done has a graph; give it detached tensors: h.detach()")
        if not isinstance(done.carry, tuple):
            raise InputError(
                f"{call}: Done(carry=) is {type(done.carry).__name__}; give a tuple of tensors"
            )
        if done.loss is not None and done.loss.dim():
            raise InputError(
                f"{call}: Done(loss=) has the shape {tuple(done.loss.shape)}; give the mean over "
                "the batch, (); class scores are the third argument"
            )
        if done.back is not None and Needs.NEXT not in self.needs:
            raise InputError(
                f"{call}: Done(back=) is for rules that learn from it; declare needs = "
                "Needs.FORWARD | Needs.NEXT and write learn(k, done, back, batch)"
            )
        return done


def _shared(loss: Tensor, share: float) -> Tensor:
    """A micro-batch's loss as a share of the whole batch's."""
    return loss * share
