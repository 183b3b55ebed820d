"""Kolen-Pollack learning: the way back goes through matrices that learn what the weights learn."""

from __future__ import annotations

from torch import nn

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.families.feedback import FeedbackRule, Matrices, glorot


class KolenPollack(FeedbackRule):
    """Kolen-Pollack learning: feedback alignment whose matrices B get the weights' own gradients,
    so that with weight decay they become the weights.

    Kolen & Pollack 1994; Akrout et al. 2019 (arXiv:1904.05391). B starts at random:

        dx = B^T dy,    dW = dy x^T,    dB = dW

    B is a parameter (`feedback`) and is stepped as W is. With SGD of learning rate lr and weight
    decay d, and with AdamW, after t steps

        B - W = (1 - lr d)^t (B_0 - W_0)

    whatever the gradients were, for what an optimizer does with equal gradients is equal: momentum
    (d then works through it, too), Adam's moments, clipping. Without weight decay B - W stays. Adam
    with an L2 penalty (no AdamW) mixes d into its moments: B comes to W at another rate.

    With B = W it is backpropagation.

    B of a layer that reads the network's input would send nothing back, and is left out. A frozen
    weight's B is frozen, too.

    Deviation: B starts as Glorot's uniform times `scale`, as in `FeedbackAlignment`.

    Args:
        blocks: the network, made with an example.
        scale: at the start, B ~ U(-a, a) with a = scale sqrt(6 / (fan_in + fan_out)).
        criterion: of class scores and labels, a scalar.

    Raises:
        InputError: a scale that is not positive; as `FeedbackRule`.
    """

    @checks_arguments
    def __init__(self, blocks: Blocks, scale: float = 1.0, criterion: Criterion = cross_entropy):
        super().__init__(blocks, criterion)
        if not scale > 0:
            raise InputError(f"KolenPollack(scale={scale}): give a positive number")
        self._keep(lambda weight: nn.Parameter(glorot(weight, scale), weight.requires_grad))

    def auxiliary(self, k: int) -> list[nn.Module]:
        return [*super().auxiliary(k), self.feedback[k]]

    def matrices(self) -> Matrices:
        return self._kept_matrices()
