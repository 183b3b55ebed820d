"""PEPITA: every block learns from what a second pass changes, whose input the error modulates."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.inputs import Inputs, describe, detached, leading
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, Rule, differentiate
from layerwise.rules.calls.again import Again
from layerwise.rules.calls.as_written import as_written
from layerwise.rules.calls.precision import full_precision
from layerwise.rules.calls.straight_through import StraightThrough


class PEPITA(Rule):
    """PEPITA (present the error to perturb the input to modulate activity): the network runs again
    on an input to which its error is added through a fixed random matrix F, and every block learns
    from the difference.

    Dellaferrera & Kreiman 2022 (arXiv:2201.11665), algorithm 1. With class scores z, per sample:

        h_k  = f_k(h_{k-1}),       h_0  = x           e = dL/dz
        h'_k = f_k(sg[h'_{k-1}]),  h'_0 = x + e F
        grad_k = mean_b (h_k - h'_k) dh'_k / d f_k    k < K
        grad_K = mean_b e dh'_K / d f_K

    For a linear layer that is the paper's (h_k - h'_k) h'_{k-1}^T. Nothing passes back between
    blocks, and the first pass keeps no graph; in the second a block's graph is gone before the next
    block runs. Both passes have the same dropout masks, as the paper's; running statistics are of
    the first. Both are in the precision of the weights under autocast, too. Hidden blocks have no
    loss. With one block nothing is modulated and it is backpropagation.

    Deviations: a convolution's gradient is the sum over positions (the authors': the mean), and
    biases learn.

    Args:
        blocks: the network, made with an example.
        scale: F ~ U(-scale sqrt(6 / d), scale sqrt(6 / d)) for d input values.
        derivative: take a nonlinearity's derivative, and so the true gradient within a block. The
            paper's rule, for blocks of one layer, has none: false lets gradients pass pointwise
            nonlinearities unchanged.
        recompute: keep no output of the first pass and run each block a third time for it, in less
            memory: MEMPEPITA (Pau & Aymone 2023).
        criterion: of class scores and labels, a scalar, mean over the batch.

    Raises:
        InputError: shapes between the blocks are not known; a label for every token; a scale that
            is not positive; in a step, inputs that are whole numbers.
    """

    needs = Needs.FORWARD | Needs.ERROR

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        scale: float = 0.05,
        derivative: bool = True,
        recompute: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, criterion=criterion)
        if not scale > 0:
            raise InputError(f"PEPITA(scale={scale}): give a positive number")
        self.derivative, self.recompute = derivative, recompute
        if len(blocks) > 1:
            self.register_buffer("feedback", _feedback(self, scale))

    def step(self, batch: Batch) -> Tensor:
        with full_precision(batch.inputs, self.blocks) as x:
            return self._two_passes(detached(x), batch)

    def _two_passes(self, x: Inputs, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        first = _FirstPass(self.blocks, batch, self.recompute)
        scores = first.run(x)
        loss, e = self.output_error(scores, batch)  # e of a sample, by 1/B
        modulated = x if last == 0 else self._modulated(x, batch.rows * e)  # h'_0 = x + e F
        h = x
        with contextlib.nullcontext() if self.derivative else as_written(self.blocks):
            for k in range(last + 1):
                h = first.output(k, h) if k < last else h  # h_k
                with first.again[k].run(), self._derivatives():
                    h_ = batch.run(k, modulated, stream=1, keep=True)  # h'_k
                if h_.requires_grad:
                    asked = e if k == last else (h - h_.detach()) / batch.rows
                    differentiate(h_, batch.scale, asked)
                modulated = h_.detach()
                del h_
                batch.done(k, *((loss, scores) if k == last else ()))
        return scores

    def _derivatives(self) -> contextlib.AbstractContextManager[object]:
        """Within, nonlinearities have their derivative, or pass gradients unchanged."""
        return contextlib.nullcontext() if self.derivative else StraightThrough()

    @torch.no_grad()
    def _modulated(self, x: Inputs, e: Tensor) -> Tensor:
        """x + e F."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise InputError(
                f"PEPITA: got {describe(x)}; the error is added to images or other real "
                "numbers, not to tokens: take rules.DirectFeedbackAlignment"
            )
        matrix = self.get_buffer("feedback")
        return x + (e.to(matrix.dtype).reshape(len(x), -1) @ matrix).view(x.shape).to(x.dtype)


class _FirstPass:
    """The pass without an error, of which each block's output is kept or computed again.

    Args:
        blocks: the network.
        batch: the step's.
        recompute: keep no outputs, and run each block again for its own.

    Attributes:
        again: for every block, how it runs again with the random numbers and buffers of this pass.
    """

    def __init__(self, blocks: Blocks, batch: Batch, recompute: bool):
        self.blocks, self.batch, self.recompute = blocks, batch, recompute
        self.again: list[Again] = []
        self._outputs: dict[int, Tensor] = {}

    def run(self, x: Inputs) -> Tensor:
        """The network's output, detached."""
        h = x
        for k, block in enumerate(self.blocks):
            self.again.append(Again(block, leading(h)))
            # With gradients on, although the graph goes at once: without them attention in eval
            # mode is another kernel, which rounds otherwise than in the second pass.
            h = self.batch.run(k, h, keep=True).detach()
            if not self.recompute:
                self._outputs[k] = h
        return h

    def output(self, k: int, h: Any) -> Tensor:
        """h_k of this pass, once; `h` is h_{k-1}."""
        if not self.recompute:
            return self._outputs.pop(k)
        with self.again[k].run():
            return self.batch.run(k, h, stream=2, keep=True).detach()


def _feedback(rule: Rule, scale: float) -> Tensor:
    """F, (classes, d)."""
    blocks = rule.blocks
    shape, (*_, scores) = blocks.known_shapes("PEPITA", "no feedback matrix can be made")
    if len(scores) > 1:
        raise InputError(
            f"PEPITA: the network gives scores of {scores} for a sample; it needs one "
            "label a sample: take rules.DirectFeedbackAlignment"
        )
    units = math.prod(shape)
    like = next((p for p in blocks.parameters() if p.is_floating_point()), torch.zeros(()))
    matrix = torch.empty(math.prod(scores), units, device=like.device, dtype=like.dtype)
    bound = scale * math.sqrt(6 / units)
    return matrix.uniform_(-bound, bound)
