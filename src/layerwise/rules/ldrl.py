"""Difference target propagation of backpropagation's targets: inverses that transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.objectives.batch import Batch
from layerwise.rules.families.targets import TargetRule


class LDRL(TargetRule):
    """Difference target propagation with the local difference reconstruction loss: inverses learn
    the transpose of their block's Jacobian, so that targets carry backpropagation's gradient.

    Ernoult et al. 2022 (arXiv:2201.13415). Block k maps h_{k-1} to h_k, g_k maps back, and L_b is
    the loss of sample b; e, n ~ N(0, noise^2) in the shape of h_{k-1} and h_k:

        t_K     = h_K - beta dL_b/dh_K                              the class scores'
        t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k)                     k = K ... 2
        grad_k  = mean_b d |f_k(sg[h_{k-1}]) - sg[t_k]|^2 / (2 beta) / d f_k
        g_k     : mean (|g_k(h_k + n) - g_k(h_k)|^2
                        - 2 e . (g_k(f_k(h_{k-1} + e)) - g_k(h_k))) / noise^2

    For small noise the last is, in expectation and but for a factor, |J_g - J_f^T|^2 - |J_f|^2 with
    the Jacobians of g_k and f_k: least where they are each other's transpose. There, with beta ->
    0, it is backpropagation, and so it is with one block. No weight is carried over.

    The reported loss of a block but the last is its inverse's, which falls below nought.

    Deviations: the forward loss is divided by 2 beta, so that gradients keep backpropagation's size
    whatever beta is (the authors' 0.7); inverses are linear by default, and beta then changes
    nothing (the authors' mirror their block, with its max pooling's indices); the inverse's loss is
    divided by noise^2 and is a mean over elements, not a sum; inverses get one gradient a step,
    over `samples` draws, in one optimizer with the blocks (the authors' take 20 to 55 steps of
    their own on each batch, before the blocks'). Dropout draws anew where a block runs on noise.

    Args:
        blocks: the network, made with an example.
        inverse: the inverse of every block but the first.
        beta: step from the class scores to their target, of a sample's own gradient; linear
            inverses give the same whatever it is.
        noise: standard deviation of what is added to a block's input, and to its output, for its
            inverse to learn.
        samples: how many draws of noise an inverse learns from in a step.
        criterion: of class scores and labels, a scalar, mean over the batch.

    Raises:
        InputError: as `TargetRule`.
    """

    from_scores = True

    def inverse_loss(self, k: int, before: Tensor, h: Tensor, batch: Batch) -> Tensor:
        e, n = self.noise * self.draw(before), self.noise * self.draw(h)
        moved = self.again(k, before + e, batch).to(h.dtype)
        # In one call: its weights get one gradient, and its cost is counted once.
        g, g_e, g_n = self.invert(k, torch.cat([h, moved, h + n])).chunk(3)
        return ((g_n - g).square() - 2 * e * (g_e - g)).mean() / self.noise**2
