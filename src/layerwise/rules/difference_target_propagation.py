"""Difference target propagation, with inverses that learn to reconstruct."""

from __future__ import annotations

from torch import Tensor

from layerwise.objectives.batch import Batch
from layerwise.rules.families.targets import TargetRule


class DifferenceTargetPropagation(TargetRule):
    """Difference target propagation: every block moves its output towards a target, which comes
    from the next block through a learned inverse.

    Lee et al. 2015 (arXiv:1412.7525), algorithm 1. Block k maps h_{k-1} to h_k = f_k(h_{k-1}), its
    inverse g_k maps back, t_k is the target of h_k, and L_b is the loss of sample b; sg[] stops the
    gradient:

        t_{K-1} = h_{K-1} - beta dL_b/dh_{K-1}                      through the last block
        t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k)                     k = K-1 ... 2
        grad_k  = mean_b d |f_k(sg[h_{k-1}]) - sg[t_k]|^2 / (2 beta) / d f_k
        g_k     : mean (g_k(f_k(h_{k-1} + e)) - (h_{k-1} + e))^2,   e ~ N(0, noise^2)

    The inverse g_k minimises the last line. The last block learns as in backpropagation. A block
    with an inverse reports the loss of its inverse.

    If the inverses are exact, the later blocks map each target to t_{K-1}. For linear blocks, the
    requested change of h_k is then the Gauss-Newton step (Meulemans et al. 2020, arXiv:2006.14331).
    With one or two blocks it is backpropagation. It is also backpropagation if beta -> 0 and each
    dg_k/dh_k is the transpose of df_k/dh_{k-1}; `LDRL` trains inverses towards that.

    Deviations: the forward loss is divided by 2 beta, so that gradients have the size of
    backpropagation's for every beta. Inverses are linear by default, and beta then changes nothing
    (the authors' have one layer with tanh). Their error is a mean over elements. One optimizer
    steps blocks and inverses together (the authors have one for the inverses, which runs for an
    epoch before each epoch of the blocks). A block may have any number of layers, and within a
    block the gradient is the true one.

    Args:
        blocks: the network's blocks, made with an example input, from which the inverses take their
            shapes.
        inverse: the recipe of the inverse of every block except the first and the last.
        beta: the step size from h_{K-1} to its target, along the gradient of each sample's own
            loss; positive. With linear inverses it changes nothing.
        noise: the standard deviation of the noise e that is added to a block's input when its
            inverse learns; positive.
        samples: the number of draws of noise that an inverse learns from in each step; at least 1.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            the mean over the batch, a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `inverse` is a class instead of a recipe; as
            `TargetRule`.
    """

    from_scores = False

    def inverse_loss(self, k: int, before: Tensor, h: Tensor, batch: Batch) -> Tensor:
        noisy = before + self.noise * self.draw(before)
        return (self.invert(k, self.again(k, noisy, batch)) - noisy).square().mean()
