"""Predictive coding: activities settle under the loss, then weights learn to predict them."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.inputs import detached
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, Rule, differentiate
from layerwise.rules.calls.again import Repeatable
from layerwise.rules.calls.as_written import as_written
from layerwise.rules.calls.precision import full_precision
from layerwise.rules.families.energy import Energy, back, check_inference, of_samples, wide


class PredictiveCoding(Rule):
    """Predictive coding: activities first settle between the predictions of the blocks and the
    loss, and then every block learns to predict them.

    Whittington & Bogacz 2017, as stated by Rosenbaum 2022 (arXiv:2106.13082). With L_b the loss of
    sample b, theta_k the weights of block k, and activities h_k that start at the feed-forward pass
    and take `steps` of inference:

        F      = sum_b ( 1/2 sum_{k<K} |h_k - f_k(h_{k-1})|^2 + L_b(f_K(h_{K-1})) ),  h_0 = x
        e_k    = f_k(h_{k-1}) - h_k,    e_K = dL_b / df_K
        h_k   <- h_k - step_size dF/dh_k = h_k + step_size (e_k - e_{k+1} df_{k+1}/dh_k)
        grad_k = mean_b e_k df_k(h_{k-1}) / d theta_k

    With `fixed_prediction` (Millidge, Tschantz & Buckley 2020, arXiv:2006.04182), the predictions
    and their derivatives remain those of the feed-forward pass, so that

        e_k   <- e_k + step_size (e_{k+1} df_{k+1}/dh_k - e_k)

    With step_size 1 and at least K - 1 steps, the gradient is then backpropagation's. Without
    `fixed_prediction`, the gradient approaches backpropagation's as errors become small. With
    step_size 1, the gradient of block k after K - k steps is backpropagation's, which is
    zero-divergence inference learning (Song et al. 2020). With one block it is backpropagation, bit
    for bit.

    With `error_based` (ePC; Goemaere et al. 2025, arXiv:2505.20137), inference descends the same
    energy by the errors. A forward pass gives the activities, and one backward pass through the
    whole network gives all derivatives, so that every step reaches every block:

        h_k    = f_k(h_{k-1}) - e_k,    e_k = 0 at the start
        e_k   <- e_k - step_size dF/de_k = e_k + step_size (dL_b/dh_k - e_k)

    The minimum is that of the activities. After few small steps, e_k is about 1 - (1 -
    step_size)^steps times backpropagation's error, and so is the gradient of every block except
    the last.

    Blocks may be any networks. Gradients within a block are autograd's, so the paper's rule is the
    case of blocks of one layer. The reported loss is that of the feed-forward pass.

    Deviations: errors are those of a sample's own loss instead of the batch mean's, so that they do
    not depend on the batch size. The code of ePC's authors divides all gradients by min(1, steps *
    step_size); here they are not divided.

    Args:
        blocks: the network's blocks.
        steps: the number of steps of inference, at least K - 1 for K blocks, because the error
            moves back by one block in a step; with `error_based` at least 1.
        step_size: the step size of inference, eta in the paper; positive. It is stable below about
            2 / (1 + s)^2, with s the largest singular value of a block's derivative, and with
            `fixed_prediction` up to 1; with `error_based` below 2 / (1 + c), with c the largest
            curvature of the loss along errors, which grows with the number of blocks.
        fixed_prediction: whether to keep the predictions of the feed-forward pass, and with them
            every block's graph, as backpropagation does. Otherwise one block's graph exists at a
            time, and blocks run again in every step of inference.
        error_based: whether to descend by the errors instead of the activities. Every step of
            inference then needs the graph of all blocks except the first.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            the mean over the batch, a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; fewer steps than the error needs to reach the first
            block; a step_size that is not positive; both `fixed_prediction` and `error_based`.
    """

    needs = Needs.BACKWARD

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        steps: int = 20,
        step_size: float = 0.1,
        fixed_prediction: bool = False,
        error_based: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, criterion=criterion)
        if error_based and fixed_prediction:
            raise InputError(
                "PredictiveCoding(fixed_prediction=True, error_based=True): give one of them"
            )
        check_inference("PredictiveCoding", blocks, steps, step_size, whole=error_based)
        self.steps, self.step_size = steps, step_size
        self.fixed_prediction, self.error_based = fixed_prediction, error_based

    def step(self, batch: Batch) -> Tensor:
        with as_written(self.blocks):  # a graph is differentiated more than once
            if self.error_based and len(self.blocks) > 1:  # otherwise there is no error to find
                return self._by_errors(batch)
            return self._fixed(batch) if self.fixed_prediction else self._relaxed(batch)

    def _relaxed(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        with full_precision(batch.inputs, self.blocks) as x:
            energy = Energy(batch, self.blocks, lambda h: self.loss(last, Activity(h), batch), x)
            h = energy.relax(self.steps, self.step_size, beta=1.0)
            energy.learn([(1.0, h)])
        return energy.output

    def _by_errors(self, batch: Batch) -> Tensor:
        last, e = len(self.blocks) - 1, []  # e_k, (B, ...), of every block except the last
        with full_precision(batch.inputs, self.blocks) as x:
            first, *others = [Repeatable(batch, self.blocks, k) for k in range(last + 1)]
            out = first.first(detached(x))  # its only run: no error changes its input
            h = out.detach()
            for block in others:
                e.append(torch.zeros_like(wide(h)).requires_grad_())
                h = block.first(_moved(h, e[-1]))
            loss, scores = self.loss(last, Activity(h), batch)
            output, found = h.detach(), (loss.detach(), scores)
            for t in range(self.steps):
                if t:
                    h = out.detach()
                    for block, error in zip(others, e, strict=True):
                        h = block(_moved(h, error))
                    loss, _ = self.loss(last, Activity(h), batch)
                pulls = of_samples(loss, e, batch)  # dL_b/de_k = -dL_b/dh_k
                with torch.no_grad():
                    for error, pull in zip(e, pulls, strict=True):
                        error -= self.step_size * (error + pull)
            del h, loss  # and the graph
            for k, block in enumerate(self.blocks):
                if k:
                    out = others[k - 1](_moved(out.detach(), e[k - 1].detach()))
                done, gradient = out, None
                if k < last:
                    gradient = e[k].detach() / len(out)
                else:
                    done, _ = self.loss(last, Activity(out), batch)
                wanted = [p for p in block.parameters() if p.requires_grad]
                differentiate(done, batch.scale, gradient, inputs=wanted)
                batch.done(k, *(found if k == last else ()))
        return output

    def _fixed(self, batch: Batch) -> Tensor:
        last, h = len(self.blocks) - 1, batch.inputs
        inputs: list[Tensor] = []  # of every block, leaves
        outputs: list[Tensor] = []  # with the block's graph
        for k in range(last + 1):
            inputs.append(h.detach().requires_grad_() if k else detached(h))
            h = batch.run(k, inputs[k], keep=k > 0)
            outputs.append(h)
        output = h.detach()
        loss, scores = self.loss(last, Activity(h), batch)
        outputs[last] = loss
        e = self._settle(inputs, outputs, batch) if last else []
        found = loss.detach(), scores
        del h, loss
        for k, block in enumerate(self.blocks):
            out = outputs.pop(0)
            wanted = [p for p in block.parameters() if p.requires_grad]
            gradient = e[k] / len(output) if k < last else None
            differentiate(out, batch.scale, gradient, inputs=wanted)
            del out  # and block k's graph
            batch.done(k, *(found if k == last else ()))
        return output

    def _settle(self, inputs: list[Tensor], outputs: list[Tensor], batch: Batch) -> list[Tensor]:
        """e_k of every block except the last, after `steps` of inference."""
        last = len(outputs) - 1
        [pull] = of_samples(outputs[last], inputs[last:], batch, retain=True)  # e_K df_K/dh_{K-1}
        e = [pull.new_zeros(h.shape) for h in outputs[:last]]
        for t in range(self.steps):
            for k in range(max(0, last - 1 - t), last):  # the blocks that the error has reached
                above = (
                    pull if k == last - 1 else back(outputs[k + 1], inputs[k + 1], e[k + 1], True)
                )
                e[k] = e[k] + self.step_size * (above - e[k])  # above = e_{k+1} df_{k+1}/dh_k
        return e


def _moved(out: Tensor, e: Tensor) -> Tensor:
    """h_k = f_k(h_{k-1}) - e_k, in the type of the block's output."""
    return (out - e).to(out.dtype)
