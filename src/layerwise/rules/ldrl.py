"""Difference target propagation, with inverses that learn the transposed Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.objectives.batch import Batch
from layerwise.rules.families.targets import TargetRule


class LDRL(TargetRule):
    """Difference target propagation with the local difference reconstruction loss: inverses learn
    the transpose of their block's Jacobian, so that targets carry backpropagation's gradient.

    Ernoult et al. 2022 (arXiv:2201.13415). Block k maps h_{k-1} to h_k = f_k(h_{k-1}), its inverse
    g_k maps back, t_k is the target of h_k, and L_b is the loss of sample b; e and n ~ N(0,
    noise^2) have the shapes of h_{k-1} and h_k; sg[] stops the gradient:

        t_K     = h_K - beta dL_b/dh_K                              the class scores'
        t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k)                     k = K ... 2
        grad_k  = mean_b d |f_k(sg[h_{k-1}]) - sg[t_k]|^2 / (2 beta) / d f_k
        g_k     : mean (|g_k(h_k + n) - g_k(h_k)|^2
                        - 2 e . (g_k(f_k(h_{k-1} + e)) - g_k(h_k))) / noise^2

    The last block learns as in backpropagation, and the inverse g_k minimises the last expression.
    For small noise its expectation is |J_g - J_f^T|^2 - |J_f|^2 up to a factor, with J_g and J_f
    the Jacobians of g_k and f_k. It is smallest where J_g is the transpose of J_f; there, with beta
    -> 0, it is backpropagation. With one block it is backpropagation. No weights are carried to the
    backward pass.

    A block with an inverse, except the last, reports the loss of its inverse, which can become
    negative. The last block reports its own loss.

    Deviations: the forward loss is divided by 2 beta, so that gradients have the size of
    backpropagation's for every beta (the authors' is 0.7). Inverses are linear by default, and beta
    then changes nothing (the authors' inverses mirror their blocks and use the indices of their max
    pooling). The inverses' loss is divided by noise^2 and is a mean over elements instead of a sum.
    Inverses get one gradient per step, over `samples` draws, and share an optimizer with the blocks
    (the authors' inverses take 20 to 55 steps of their own on each batch, before the blocks' step).
    Dropout draws new masks when a block runs on noise.

    Args:
        blocks: the network's blocks, made with an example input, from which the inverses take their
            shapes.
        inverse: the recipe of the inverse of every block except the first.
        beta: the step size from the class scores to their target, along the gradient of each
            sample's own loss; positive. With linear inverses it changes nothing.
        noise: the standard deviation of the noise that is added to a block's input (e) and output
            (n) when its inverse learns; positive.
        samples: the number of draws of noise that an inverse learns from in each step; at least 1.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            the mean over the batch, a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `inverse` is a class instead of a recipe; as
            `TargetRule`.
    """

    from_scores = True

    def inverse_loss(self, k: int, before: Tensor, h: Tensor, batch: Batch) -> Tensor:
        e, n = self.noise * self.draw(before), self.noise * self.draw(h)
        moved = self.again(k, before + e, batch).to(h.dtype)
        # In one call: its weights get one gradient, and its cost is counted once.
        g, g_e, g_n = self.invert(k, torch.cat([h, moved, h + n])).chunk(3)
        return ((g_n - g).square() - 2 * e * (g_e - g)).mean() / self.noise**2
