"""Kolen-Pollack learning: gradients go back through matrices that learn what the weights learn."""

from __future__ import annotations

from torch import nn

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.families.feedback import FeedbackRule, Matrices, glorot


class KolenPollack(FeedbackRule):
    """Kolen-Pollack learning: feedback alignment in which each matrix B gets the same gradients as
    its weight, so that weight decay makes the two equal.

    Kolen & Pollack 1994; Akrout et al. 2019 (arXiv:1904.05391). For a layer y = W x, with B random
    at the start:

        dx = B^T dy,    dW = dy x^T,    dB = dW

    B is a parameter (`feedback`) and the optimizer steps it like W. With SGD or AdamW, learning
    rate lr and weight decay d, after t steps

        B - W = (1 - lr d)^t (B_0 - W_0)

    whatever the gradients were, because an optimizer treats equal gradients equally: in momentum
    (through which d then acts, too), in Adam's moments, and in clipping. Without weight decay, B -
    W stays as it is. Adam with an L2 penalty (unlike AdamW) mixes d into its moments, so B
    approaches W at another rate.

    With B = W it is backpropagation. A layer that reads the network's input sends nothing back, so
    it has no B. If a weight is frozen, its B is frozen, too.

    Deviation: B starts with Glorot's uniform distribution times `scale`, as in `FeedbackAlignment`.

    Args:
        blocks: the network's blocks, made with an example input.
        scale: a positive factor: at the start, B ~ U(-a, a) with a = scale sqrt(6 / (fan_in +
            fan_out)).
        criterion: the loss function of the network's output: takes class scores and labels, returns
            a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; a scale that is not positive; as `FeedbackRule`.
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
