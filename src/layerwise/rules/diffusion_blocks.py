"""DiffusionBlocks: every block learns on its own to denoise the label, at its own noise levels."""

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
    """DiffusionBlocks: every denoiser learns to predict the label from the image and a noisy vector
    of the label, at its own share of a diffusion model's noise levels.

    Shing, Koyama & Akiba 2025 (arXiv:2506.14202), eq. 6 and appendices B and C. With D_t denoiser
    t, u_y the vector of label y, noise eps ~ N(0, I), CE the cross entropy, and s = 0.5:

        sigma  ~ exp(N(-1.2, 1.2^2)) within [sigma_t / alpha, sigma_{t-1} alpha] and the range
                 [sigma_T, sigma_0] of all shares,    alpha = (sigma_{t-1} / sigma_t)^overlap
        w      = (sigma^2 + s^2) / (sigma s)^2
        loss_t = mean_b w CE(readout_t(D_t(u_y + sigma eps, sigma, x)), y)
        loss   = CE(readout(u_y + sigma_T eps), y)                       the classifier's

    All denoisers have equal shares of the distribution of sigma, which is drawn for every sample
    and denoiser. The weight w is that of Karras et al. 2022 (arXiv:2206.00364). With `squared`, the
    squared error of the label's vector replaces the cross entropy:

        loss_t = mean_b w/2 |softmax(readout_t(D_t)) - u_y|^2

    `forward` is inference: each denoiser takes one step of Euler's method. The report of a step
    contains the class scores of inference, which runs alongside training on the same features of
    the image. The last block reports the loss of inference, and every other block reports the sum
    of its loss_t.

    The gradient of a denoiser depends only on its own weights, the images and the labels. It does
    not depend on how the chain is cut into blocks. With one block it is therefore still this rule,
    not backpropagation.

    Deviations: all denoisers learn in every step (the authors draw one of them, which gives the
    same mean up to a factor). The labels' vectors are fixed, and every denoiser has a readout of
    its own (`diffusion_vit`). Public copies of the authors' code multiply the batch mean of w by
    the batch mean of CE; here w multiplies each sample's CE, as in eq. 6.

    Args:
        blocks: the blocks of `models.diffusion_vit`, cut between its modules.
        overlap: the fraction of a denoiser's own share, on a logarithmic scale, by which it also
            trains on its neighbours' noise levels; 0 or more. It is gamma in the paper.
        squared: whether denoisers minimise the squared error instead of the cross entropy.
        criterion: the loss function of the classifier: takes class scores and labels, returns a
            scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; the network is not a chain of such denoisers with a
            linear classifier; a negative overlap.
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
        w = (sigma**2 + s**2) / (sigma * s) ** 2  # (B, 1)
        if self.squared:
            return distance(w.sqrt() * (F.softmax(scores, 1) - u), labels)
        y = labels.to(scores.dtype) if labels.is_floating_point() else labels
        each = w.squeeze(1) * F.cross_entropy(scores, y, reduction="none")
        return mean_of_counted(each, labels)

    def levels(self, denoiser: VitDenoiser, u: Tensor) -> Tensor:
        """sigma, (B, 1): noise levels from the denoiser's share, for vectors u, (B, E)."""
        (_, highest), (_, lowest) = denoiser.before, denoiser.after
        alpha = (highest / lowest) ** self.overlap
        ends = max(lowest / alpha, self._end[1]), min(highest * alpha, self._start[1])
        mean, deviation = denoiser.spread
        bottom, top = (NormalDist(mean, deviation).cdf(math.log(end)) for end in ends)
        share = bottom + (top - bottom) * torch.rand_like(u[:, :1])
        # In single precision, the quantile of a share next to 0 or 1 can be infinite.
        return (mean + deviation * torch.special.ndtri(share)).exp().clamp(*ends)
