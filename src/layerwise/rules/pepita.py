"""PEPITA: every block learns from how a second pass, with the error in its input, differs."""

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
    """PEPITA (present the error to perturb the input to modulate activity): the network runs a
    second time with its error added to the input through a fixed random matrix F, and every block
    learns from the change of its output.

    Dellaferrera & Kreiman 2022 (arXiv:2201.11665), algorithm 1. With the class scores z and the
    loss L, per sample; sg[] stops the gradient:

        h_k  = f_k(h_{k-1}),       h_0  = x           e = dL/dz
        h'_k = f_k(sg[h'_{k-1}]),  h'_0 = x + e F
        grad_k = mean_b (h_k - h'_k) dh'_k / d f_k    k < K
        grad_K = mean_b e dh'_K / d f_K

    For a linear layer this is the paper's (h_k - h'_k) h'_{k-1}^T. No signal passes back between
    blocks. The first pass keeps no graph, and in the second pass a block's graph is freed before
    the next block runs. Both passes have the same dropout masks, as in the paper; running
    statistics move only in the first. Under autocast both passes run in the precision of the
    weights, too. Hidden blocks have no loss. With one block the input is not changed and it is
    backpropagation.

    Deviations: the gradient of a convolution is the sum over positions (the authors take the mean),
    and biases learn.

    Args:
        blocks: the network's blocks, made with an example input.
        scale: a positive factor: F ~ U(-scale sqrt(6 / d), scale sqrt(6 / d)) for d input values.
        derivative: whether gradients pass through the derivatives of nonlinearities, which gives
            the true gradient within a block. The paper's rule, for blocks of one layer, has no such
            derivatives: with false, gradients pass pointwise nonlinearities unchanged.
        recompute: whether to keep no output of the first pass and to run each block a third time
            instead, which saves memory: MEMPEPITA (Pau & Aymone 2023).
        criterion: the loss function of the network's output: takes class scores and labels, returns
            the mean over the batch, a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example; a network with
            a label for every token; a scale that is not positive; in `backward`, inputs that are
            not one tensor of real numbers.
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
        loss, e = self.output_error(
            scores, batch
        )  # this e is that of the batch mean, 1/B of a sample's
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
        """A context in which gradients pass nonlinearities unchanged, unless `derivative`."""
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
    """The first pass, without the error; each block's output is kept or computed again.

    Args:
        blocks: the network.
        batch: the batch of the step.
        recompute: whether to keep no outputs and to run each block again instead.

    Attributes:
        again: for every block, a way to run it again with the random numbers and buffers of this
            pass.
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
            # With gradients on, although the graph is freed at once: with gradients off, attention
            # in eval mode is another kernel, which rounds differently from the second pass.
            h = self.batch.run(k, h, keep=True).detach()
            if not self.recompute:
                self._outputs[k] = h
        return h

    def output(self, k: int, h: Any) -> Tensor:
        """h_k of this pass, from h = h_{k-1}; it can be asked for once."""
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
            f"PEPITA: the network gives scores of {scores} for a sample; the rule "
            "needs one label per sample: take rules.DirectFeedbackAlignment"
        )
    units = math.prod(shape)
    like = next((p for p in blocks.parameters() if p.is_floating_point()), torch.zeros(()))
    matrix = torch.empty(math.prod(scores), units, device=like.device, dtype=like.dtype)
    bound = scale * math.sqrt(6 / units)
    return matrix.uniform_(-bound, bound)
