"""Predictive coding: activities settle under the loss, then weights learn to predict them."""

from __future__ import annotations

from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.inputs import detached
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, Rule, differentiate
from layerwise.rules.calls.as_written import as_written
from layerwise.rules.calls.precision import full_precision
from layerwise.rules.families.energy import Energy, back, check_inference, of_samples


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

    Blocks may be any networks. Gradients within a block are autograd's, so the paper's rule is the
    case of blocks of one layer. The reported loss is that of the feed-forward pass.

    Deviation: errors are those of a sample's own loss instead of the batch mean's, so that they do
    not depend on the batch size.

    Args:
        blocks: the network's blocks.
        steps: the number of steps of inference, at least K - 1 for K blocks, because the error
            moves back by one block in a step.
        step_size: the step size of inference, eta in the paper; positive. It is stable below about
            2 / (1 + s)^2, with s the largest singular value of a block's derivative, and with
            `fixed_prediction` up to 1.
        fixed_prediction: whether to keep the predictions of the feed-forward pass, and with them
            every block's graph, as backpropagation does. Otherwise one block's graph exists at a
            time, and blocks run again in every step of inference.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            the mean over the batch, a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; fewer steps than the error needs to reach the first
            block; a step_size that is not positive.
    """

    needs = Needs.BACKWARD

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        steps: int = 20,
        step_size: float = 0.1,
        fixed_prediction: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, criterion=criterion)
        check_inference("PredictiveCoding", blocks, steps, step_size)
        self.steps, self.step_size = steps, step_size
        self.fixed_prediction = fixed_prediction

    def step(self, batch: Batch) -> Tensor:
        with as_written(self.blocks):  # a graph is differentiated more than once
            return self._fixed(batch) if self.fixed_prediction else self._relaxed(batch)

    def _relaxed(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        with full_precision(batch.inputs, self.blocks) as x:
            energy = Energy(batch, self.blocks, lambda h: self.loss(last, Activity(h), batch), x)
            h = energy.relax(self.steps, self.step_size, beta=1.0)
            energy.learn([(1.0, h)])
        return energy.output

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
        pull = of_samples(outputs[last], inputs[last], batch, retain=True)  # e_K df_K/dh_{K-1}
        e = [pull.new_zeros(h.shape) for h in outputs[:last]]
        for t in range(self.steps):
            for k in range(max(0, last - 1 - t), last):  # the blocks that the error has reached
                above = (
                    pull if k == last - 1 else back(outputs[k + 1], inputs[k + 1], e[k + 1], True)
                )
                e[k] = e[k] + self.step_size * (above - e[k])  # above = e_{k+1} df_{k+1}/dh_k
        return e
