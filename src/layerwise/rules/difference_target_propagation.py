"""Difference target propagation: inverses that reconstruct."""

from __future__ import annotations

from torch import Tensor

from layerwise.objectives.batch import Batch
from layerwise.rules.families.targets import TargetRule


class DifferenceTargetPropagation(TargetRule):
    """Difference target propagation: every block learns to give a target, which comes back from the
    block after it through a learned inverse.

    Lee et al. 2015 (arXiv:1412.7525), algorithm 1. Block k maps h_{k-1} to h_k, g_k maps back, and
    L_b is the loss of sample b:

        t_{K-1} = h_{K-1} - beta dL_b/dh_{K-1}                      through the last block
        t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k)                     k = K-1 ... 2
        grad_k  = mean_b d |f_k(sg[h_{k-1}]) - sg[t_k]|^2 / (2 beta) / d f_k
        g_k     : mean (g_k(f_k(h_{k-1} + e)) - (h_{k-1} + e))^2,   e ~ N(0, noise^2)

    The last block learns as in backpropagation. The reported loss of a block is its inverse's.

    With exact inverses a target is what the blocks behind map to t_{K-1}; for linear blocks the
    change asked of h_k is then the Gauss-Newton step (Meulemans et al. 2020, arXiv:2006.14331).
    Where dg_k/dh_k is the transpose of df_k/dh_{k-1} and beta -> 0, and with one or two blocks, it
    is backpropagation; `LDRL` teaches inverses to be so.

    Deviations: the forward loss is divided by 2 beta, so that gradients keep backpropagation's size
    whatever beta is; inverses are linear by default, and beta then changes nothing (the authors'
    are one layer with tanh); their error is a mean over elements; one optimizer steps blocks and
    inverses at once (the authors' inverses have their own, an epoch of it before each of the
    blocks'). Blocks may have any number of layers, and within one the gradient is the true one.

    Args:
        blocks: the network, made with an example.
        inverse: the inverse of every block but the first and the last.
        beta: step from an activation to the first target, of a sample's own gradient; linear
            inverses give the same whatever it is.
        noise: standard deviation of what is added to a block's input for its inverse to learn.
        samples: how many draws of noise an inverse learns from in a step.
        criterion: of class scores and labels, a scalar, mean over the batch.

    Raises:
        InputError: as `TargetRule`.
    """

    from_scores = False

    def inverse_loss(self, k: int, before: Tensor, h: Tensor, batch: Batch) -> Tensor:
        noisy = before + self.noise * self.draw(before)
        return (self.invert(k, self.again(k, noisy, batch)) - noisy).square().mean()
