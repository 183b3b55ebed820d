"""NoProp: every block learns by itself to denoise the label, given the input."""

from __future__ import annotations

from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.models.denoisers import Denoiser
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.families.denoising import DenoisingRule, distance, noised


class NoProp(DenoisingRule):
    """NoProp-DT: denoiser t learns to tell the label's clean vector u_y from a noisy one and the
    image, whatever the other blocks do.

    Li, Teh & Pascanu 2025 (arXiv:2503.24322), eq. 8. With T denoisers u_t, noise eps ~ N(0, I), and
    SNR(t) = alpha^_t / (1 - alpha^_t) of the network's schedule (`models.noprop_cnn`):

        z_t    = sqrt(alpha^_t) u_y + sqrt(1 - alpha^_t) eps             drawn anew for every block
        loss_t = eta / 2 (SNR(t) - SNR(t - 1)) mean_b |u_t(z_{t-1}, x) - u_y|^2
        loss   = CE(readout(z_T), y)                                     the classifier's

    which are the terms of eq. 8 with its expectation over t written out; its divergence of z_0 from
    pure noise is 0, as alpha^_0 is. `forward` is inference: from z_0, through all denoisers. The
    step's report has the class scores of inference; it runs on beside the training, on the same
    features of the image. The last block's reported loss is that of inference, others' is loss_t.

    A denoiser's gradient depends on its own weights, the images and the labels alone, and not on
    how the chain is cut into blocks: with one block it is still NoProp, not backpropagation.

    Deviations: all denoisers take one step together, where algorithm 1 visits one after the other
    and trains readout and vectors with each; learned vectors are the rule's, and what a denoiser
    answers with are vectors of its own.

    Args:
        blocks: `models.noprop_cnn`, cut between its modules.
        eta: weight of the denoisers' losses; under Adam it matters for learned vectors alone.
        learned: whether the labels' vectors u_y are learned, from every block's loss; else they are
            the unit vectors, or where their number is not that of classes random orthogonal ones.
        criterion: of class scores and labels, a scalar; the readout's.

    Raises:
        InputError: the network is no chain of denoisers; an eta that is not positive.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        eta: float = 0.1,
        learned: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, Denoiser, "models.noprop_cnn", learned, criterion)
        if not eta > 0:
            raise InputError(f"NoProp(eta={eta}): give more than 0, such as 0.1")
        self.eta = eta

    def denoising_loss(
        self, denoiser: Denoiser, features: Tensor, u: Tensor, labels: Tensor
    ) -> Tensor:
        estimate = denoiser.estimate(features, noised(u, denoiser.before))
        weight = self.eta * (snr(denoiser.after) - snr(denoiser.before))
        return weight * distance(estimate - u, labels)


def snr(levels: tuple[float, float]) -> float:
    """The signal-to-noise ratio of signal u + noise eps."""
    signal, noise = levels
    return (signal / noise) ** 2
