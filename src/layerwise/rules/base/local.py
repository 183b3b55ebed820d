"""Rules under which a block needs nothing from later blocks before it learns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from layerwise.inputs import Inputs
from layerwise.objectives.batch import Batch
from layerwise.rules.base.differentiate import differentiate
from layerwise.rules.base.rule import Done, Needs, Rule


class LocalRule(Rule):
    """A rule under which a block's gradient is there once its input is: blocks may live in
    different processes.

    By default every block k minimises its own objective; sg[] stops the gradient between blocks:

        h_k = f_k(sg[h_{k-1}]),    grad_k = d objective_k(h_k) / d (f_k, head_k)

    The input of a block does not require grad, so its gradient is never computed. A block that has
    no objective is not trained. A rule that trains its blocks otherwise writes `local_step`.

    Args:
        blocks, objectives, criterion: as of `Rule`.
    """

    needs = Needs.FORWARD

    def local_step(self, k: int, h: Any, batch: Batch) -> Done:
        """Block k's step: its gradients are in `.grad`, and its graph is gone, when this returns.

        Args:
            k: number of the block.
            h: its input, detached, (B, ...); of the first block what `first_input` gives.
            batch: the step's.

        A rule whose blocks carry further tensors from one to the next (`Done.carry`) takes them as
        further arguments, which are left out for the first block.
        """
        if k not in self.objectives:
            with torch.no_grad():
                return Done(self.run(k, h, batch)[0])
        h, activity = self.run(k, h, batch)  # h_k = f_k(sg[h_{k-1}])
        loss, scores = self.loss(k, activity, batch)
        differentiate(loss, batch.scale)  # d objective_k / d (f_k, head_k)
        return Done(h.detach(), loss.detach(), scores)

    def learn(self, k: int, done: Done, back: Tensor, batch: Batch) -> Tensor | None:
        """Under `Needs.NEXT`, the step of block k's auxiliary networks from what block k+1 sent
        back. It may come after later batches, when weights have moved.

        Args:
            k: number of the block.
            done: what its `local_step` gave; without `kept` where weights may have moved since.
            back: what block k+1 gave as `Done.back`.
            batch: the step's.

        Returns:
            The loss of the auxiliary networks, (), where it is the block's reported loss.
        """
        return None

    def learned(self, k: int, done: Done, back: Tensor | None, batch: Batch) -> Tensor | None:
        """Let block k's auxiliary networks learn, where block k+1 sent something back; gives the
        block's reported loss."""
        loss = None if back is None else self.learn(k, done, back, batch)
        return done.loss if loss is None else loss

    def first_input(self, batch: Batch) -> Inputs:
        """The input of the first block, detached."""
        return self.reading.first_input(batch)

    def reads_input(self, blocks: Iterable[int]) -> bool:
        """Whether these blocks read `batch.x` other than as the input of the first block."""
        blocks = list(blocks)
        objectives = map(self.objectives.get, blocks)
        return any(o.reads_input for o in objectives if o is not None) or any(
            k > 0 and self.blocks.reads_inputs(k) for k in blocks
        )

    def step(self, batch: Batch) -> Tensor:
        last, late = len(self.blocks) - 1, Needs.NEXT in self.needs
        h, carry, before = self.first_input(batch), (), None
        for k in range(last + 1):
            done = self.local_step(k, h, batch, *carry)
            if late and before is not None:
                batch.done(k - 1, self.learned(k - 1, before, done.back, batch), before.scores)
            if k == last or not late:
                batch.done(k, done.loss, done.scores)
            h, carry, before = done.out, done.carry, done if late else None
            del done  # the block's scores go before the next block runs
        return h
