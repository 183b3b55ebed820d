"""NoProp: every block learns on its own to denoise the label, given the input."""

from __future__ import annotations

from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.models.denoisers import Denoiser
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.families.denoising import DenoisingRule, distance, noised


class NoProp(DenoisingRule):
    """NoProp (NoProp-DT): every denoiser learns on its own to predict the label's vector from a
    noisy version of it and the image.

    Li, Teh & Pascanu 2025 (arXiv:2503.24322), eq. 8. With T denoisers u_t, u_y the vector of label
    y, noise eps ~ N(0, I), CE the cross entropy, and SNR(t) = alpha^_t / (1 - alpha^_t) from the
    network's schedule (`models.noprop_cnn`):

        z_t    = sqrt(alpha^_t) u_y + sqrt(1 - alpha^_t) eps             drawn anew for every block
        loss_t = eta / 2 (SNR(t) - SNR(t - 1)) mean_b |u_t(z_{t-1}, x) - u_y|^2
        loss   = CE(readout(z_T), y)                                     the classifier's

    These are the terms of eq. 8 with its expectation over t written out. The divergence of z_0 from
    pure noise in eq. 8 is 0, because alpha^_0 is 0.

    `forward` is inference: from z_0 through all denoisers. The report of a step contains the class
    scores of inference, which runs alongside training on the same features of the image. The last
    block reports the loss of inference, and every other block reports the sum of its loss_t.

    The gradient of a denoiser depends only on its own weights, the images and the labels. It does
    not depend on how the chain is cut into blocks. With one block it is therefore still NoProp, not
    backpropagation.

    Deviations: all denoisers take one step together (algorithm 1 visits them one after the other,
    and trains the readout and the labels' vectors with each). With `learned`, the rule owns the
    labels' vectors, and the denoisers compose their predictions from vectors of their own.

    Args:
        blocks: the blocks of `models.noprop_cnn`, cut between its modules.
        eta: the weight of the denoisers' losses, positive. With Adam it matters only if `learned`.
        learned: whether the labels' vectors u_y are learned, from the losses of all blocks.
            Otherwise they are the unit vectors, or random orthogonal vectors if their size is not
            the number of classes.
        criterion: the loss function of the readout: takes class scores and labels, returns a
            scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; the network is not a chain of such denoisers with a
            linear classifier; an eta that is not positive.
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
    """SNR: the signal-to-noise ratio of signal u + noise eps."""
    signal, noise = levels
    return (signal / noise) ** 2
