"""DiffusionBlocks: every block learns by itself to denoise the label at its own noise levels."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.labels import mean_of_counted
from layerwise.models.denoisers import Denoiser
from layerwise.models.diffusion import VitDenoiser
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.families.denoising import DenoisingRule, distance, noised


class DiffusionBlocks(DenoisingRule):
    """DiffusionBlocks: each denoiser has an equal share of a diffusion model's noise levels, and
    learns to tell the label from noisy versions of its vector u_y, of that share, and the image.

    Shing, Koyama & Akiba 2025 (arXiv:2506.14202), eq. 6 and appendices B and C. With D_t denoiser
    t, noise eps ~ N(0, I), and s = 0.5:

        sigma  ~ exp(N(-1.2, 1.2^2)) within [sigma_t / alpha, sigma_{t-1} alpha] and the ends
                 [sigma_T, sigma_0] of all shares,    alpha = (sigma_{t-1} / sigma_t)^overlap
        w      = (sigma^2 + s^2) / (sigma s)^2
        loss_t = mean_b w CE(readout_t(D_t(u_y + sigma eps, sigma, x)), y)
        loss   = CE(readout(u_y + sigma_T eps), y)                       the classifier's

    sigma is drawn for every sample and denoiser. The weight is that of Karras et al. 2022
    (arXiv:2206.00364). With `squared` the loss within eq. 6 is the squared error of the label's
    vector: loss_t = mean_b w/2 |softmax(readout_t(D_t)) - u_y|^2. `forward` is inference, one step
    of Euler's method in every denoiser. The step's report has the class scores of inference; it
    runs on beside the training, on the same features of the image. The last block's reported loss
    is that of inference, others' is loss_t.

    A denoiser's gradient depends on its own weights, the images and the labels alone, and not on
    how the chain is cut into blocks: with one block it is still this rule, not backpropagation.

    Deviations: all denoisers learn in every step (one, drawn: the same in the mean, but for a
    factor); the labels' vectors are fixed, and no denoiser shares its readout (`diffusion_vit`).
    Public copies of the authors' code multiply the batch's means of w and of CE; this is eq. 6.

    Args:
        blocks: `models.diffusion_vit`, cut between its modules.
        overlap: by how much of its own share, on the logarithm's scale, a denoiser also trains on
            its neighbours' noise levels; gamma in the paper.
        squared: whether denoisers minimise the squared error, not the cross entropy.
        criterion: of class scores and labels, a scalar; the classifier's.

    Raises:
        InputError: the network is no chain of such denoisers; a negative overlap.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        overlap: float = 0.05,
        squared: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, VitDenoiser, "models.diffusion_vit", False, criterion)
        if not overlap >= 0:
            raise InputError(f"DiffusionBlocks(overlap={overlap}): give at least 0, such as 0.05")
        self.overlap, self.squared = overlap, squared

    def denoising_loss(
        self, denoiser: Denoiser, features: Tensor, u: Tensor, labels: Tensor
    ) -> Tensor:
        assert isinstance(denoiser, VitDenoiser)
        sigma, s = self.levels(denoiser, u), denoiser.sigma_data
        scores = denoiser.scores(features, noised(u, (1.0, sigma)), sigma)
        weight = (sigma**2 + s**2) / (sigma * s) ** 2  # (B, 1)
        if self.squared:
            return distance(weight.sqrt() * (F.softmax(scores, 1) - u), labels)
        y = labels.to(scores.dtype) if labels.is_floating_point() else labels
        each = weight.squeeze(1) * F.cross_entropy(scores, y, reduction="none")
        return mean_of_counted(each, labels)

    def levels(self, denoiser: VitDenoiser, u: Tensor) -> Tensor:
        """Noise levels of the denoiser's share, (B, 1), for vectors u (B, E)."""
        (_, highest), (_, lowest) = denoiser.before, denoiser.after
        alpha = (highest / lowest) ** self.overlap
        ends = max(lowest / alpha, self._end[1]), min(highest * alpha, self._start[1])
        mean, deviation = denoiser.spread
        bottom, top = (NormalDist(mean, deviation).cdf(math.log(end)) for end in ends)
        share = bottom + (top - bottom) * torch.rand_like(u[:, :1])
        # Of a share next to 0 or 1 single precision knows no quantile.
        return (mean + deviation * torch.special.ndtri(share)).exp().clamp(*ends)
