"""Difference target propagation with direct feedback: every block's target comes from the class
scores."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads import Inverse
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, differentiate
from layerwise.rules.families.targets import TargetRule


class DirectDifferenceTargetPropagation(TargetRule):
    """Direct difference target propagation (DDTP): every block's target comes directly from the
    target of the class scores, through an inverse that learns by the difference reconstruction
    loss.

    Meulemans et al. 2020 (arXiv:2006.14331). Block k maps h_{k-1} to h_k = f_k(h_{k-1}), F_k are
    blocks k to K, so that z = F_k(h_{k-1}) are the class scores, g_k maps the class scores to
    h_{k-1}, t_k is the target of h_k, and L_b is the loss of sample b; e and n ~ N(0, noise^2) have
    the shapes of h_{k-1} and z; sg[] stops the gradient:

        t       = z - beta dL_b/dz                                  the class scores'
        t_{k-1} = h_{k-1} + g_k(t) - g_k(z)                         k = K ... 2
        grad_k  = mean_b d |f_k(sg[h_{k-1}]) - sg[t_k]|^2 / (2 beta) / d f_k
        g_k     : mean (|g_k(F_k(h_{k-1} + e)) - g_k(z) - e|^2
                        + damping |g_k(z + n) - g_k(z)|^2) / noise^2

    The last block learns as in backpropagation, and the inverse g_k minimises the last expression.
    For small noise its expectation is |J_g J - 1|^2 + damping |J_g|^2 up to a factor, with J_g and
    J the Jacobians of g_k and F_k. It is smallest where J_g = J^T (J J^T + damping)^-1. Without
    damping this is the pseudo-inverse of J, and the requested change of h_{k-1} is the Gauss-Newton
    step for the class scores, with the smallest norm; with large damping it has the direction of
    backpropagation's gradient. If J_g is J^T and beta -> 0, the rule is backpropagation. With one
    block it is backpropagation. No weights are carried to the backward pass, and no signal passes
    back through later blocks.

    Linear inverses are the authors' DDTP-linear. With `--rule.inverse.layers 1
    --rule.inverse.width 512 --rule.inverse.fixed true` they are similar to DDTP-RHL, in which the
    class scores first go through a fixed random hidden layer.

    A block with an inverse, except the last, reports the loss of its inverse. The last block
    reports its own loss.

    Deviations: the forward loss is divided by 2 beta, so that gradients have the size of
    backpropagation's for J_g = J^T and every beta; with linear inverses beta then changes nothing.
    The inverses' loss is a mean over elements instead of a sum. The second noise is drawn (the
    authors replace its term by weight decay of the inverses). Inverses share an optimizer with the
    blocks (the authors' have one of their own, and train alone before the first epoch). A block may
    have any number of layers, and within a block the gradient is the true one. Dropout draws new
    masks when blocks run on noise.

    Args:
        blocks: the network's blocks, made with an example input, from which the inverses take their
            shapes.
        inverse: the recipe of the inverse of every block except the first, from the class scores to
            the block's input.
        beta: the step size from the class scores to their target, along the gradient of each
            sample's own loss; positive. With linear inverses it changes nothing.
        noise: the standard deviation of the noise that is added to a block's input (e) and to the
            class scores (n) when an inverse learns; positive.
        samples: the number of draws of noise that an inverse learns from in each step; at least 1.
        damping: between the pseudo-inverse of the Jacobian (0) and its transpose (large).
        criterion: the loss function of the network's output: takes class scores and labels, returns
            the mean over the batch, a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `inverse` is a class instead of a recipe; a negative
            `damping`; as `TargetRule`.
    """

    needs = Needs.FORWARD | Needs.ERROR
    from_scores = True
    direct = True

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        inverse: Inverse = Inverse(),
        beta: float = 0.1,
        noise: float = 0.1,
        samples: int = 1,
        damping: float = 1.0,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, inverse, beta, noise, samples, criterion)
        if not damping >= 0:
            raise InputError(
                f"DirectDifferenceTargetPropagation(damping={damping}): give 0 or more; with 0 "
                "inverses learn the pseudo-inverse"
            )
        self.damping = damping

    def inverse_loss(self, k: int, before: Tensor, h: Tensor, batch: Batch) -> Tensor:
        e = self.noise * self.draw(before)
        noisy = before + e
        for j in range(k, len(self.blocks)):
            noisy = self.again(j, noisy, batch)  # F_k(h_{k-1} + e)
        read = [h, noisy.to(h.dtype)]
        if self.damping:
            read.append(h + self.noise * self.draw(h))
        # In one call: its weights get one gradient, and its cost is counted once.
        g, g_e, *g_n = self.invert(k, torch.cat(read)).chunk(len(read))
        loss = (g_e - g - e).square()
        for of_noise in g_n:
            loss = loss + self.damping * (of_noise - g).square()
        return loss.mean() / self.noise**2

    def step(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        before, outputs = self._forward(batch)
        scores = outputs[last].detach()
        loss, e = self.output_error(scores, batch, batch.scale)
        change = self._first_change(e, batch)  # t - z
        # First to last: inverse k learns from later blocks, which are not stepped before.
        for k in range(last + 1):
            h = outputs[k]
            if k == last:
                differentiate(h, gradient=e)
            else:
                self._towards(h, self._below(k + 1, scores, change), batch)
            outputs[k] = h = scores  # without block k's graph
            found = (loss, scores) if k == last else ()
            if k in self.inverses:
                of_inverse = self._learn(k, before[k], h, batch)
                found = found or (of_inverse,)
            batch.done(k, *found)
        return scores
