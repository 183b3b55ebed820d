"""DiffusionBlocks: every block learns by itself to denoise the label at its own noise levels."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from layerwise.batch import Batch
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.families.denoising import DenoisingRule, noised
from layerwise.models.denoisers import Denoiser
from layerwise.models.diffusion import VitDenoiser
from layerwise.objectives import Objective
from layerwise.objectives.classify import Criterion, cross_entropy


class DiffusionBlocks(DenoisingRule):
    """DiffusionBlocks: each denoiser has an equal share of a diffusion model's noise levels, and
    learns to tell the label's clean vector u_y from noisy ones of that share and the image.

    Shing, Koyama & Akiba 2025 (arXiv:2506.14202). With D_t denoiser t, noise eps ~ N(0, I), and s
    the standard deviation of the vectors' features:

        sigma ~ exp(N(-1.2, 1.2^2)) within [sigma_t / alpha, sigma_{t-1} alpha],
                alpha = (sigma_{t-1} / sigma_t)^overlap
        loss_t = (sigma^2 + s^2) / (sigma s)^2 mean_b 1/2 |D_t(u_y + sigma eps, sigma, x) - u_y|^2
        loss   = CE(readout(u_y + sigma_T eps), y)                       the classifier's

    sigma is drawn for every sample and denoiser. The weight is that of Karras et al. 2022
    (arXiv:2206.00364). `forward` is inference, one step of Euler's method in every denoiser. The
    step's report has the class scores of inference; it runs on beside the training, on the same
    features of the image. The last block's reported loss is that of inference, others' is loss_t.

    A denoiser's gradient depends on its own weights, the images and the labels alone, and not on
    how the chain is cut into blocks: with one block it is still this rule, not backpropagation.

    Deviations: the labels' vectors are fixed orthogonal unit vectors and the distance to them is
    squared, as for any other target (the authors' code for classes: learned unit vectors with
    s = 0.5, and the cross entropy of the readout of D_t with the same weight); the outermost shares
    reach beyond sigma_0 and sigma_T, too (they end there); all denoisers learn in every step (one,
    drawn).

    Args:
        blocks: `models.diffusion_vit`, cut between its modules.
        overlap: by how much of its own share, on the logarithm's scale, a denoiser also trains on
            its neighbours' noise levels; gamma in the paper.
        criterion: of class scores and labels, a scalar; the readout's.

    Raises:
        InputError: the network is no chain of such denoisers; a negative overlap.
    """

    def __init__(self, blocks: Blocks, overlap: float = 0.1, criterion: Criterion = cross_entropy):
        super().__init__(blocks, VitDenoiser, "models.diffusion_vit", False, criterion)
        if not overlap >= 0:
            raise InputError(f"DiffusionBlocks(overlap={overlap}): give at least 0, such as 0.1")
        self.overlap = overlap

    def denoising_loss(
        self, denoiser: Denoiser, features: Tensor, u: Tensor, distance: Objective, batch: Batch
    ) -> Tensor:
        assert isinstance(denoiser, VitDenoiser)
        sigma, s = self.levels(denoiser, u), denoiser.sigma_data
        estimate = denoiser.estimate(features, noised(u, (1.0, sigma)), sigma)
        weight = (sigma**2 + s**2) / (sigma * s) ** 2
        return distance(weight.sqrt() * (estimate - u), batch)

    def levels(self, denoiser: VitDenoiser, u: Tensor) -> Tensor:
        """Noise levels of the denoiser's share, (B, 1), for vectors u (B, E)."""
        (_, highest), (_, lowest) = denoiser.before, denoiser.after
        alpha = (highest / lowest) ** self.overlap
        normal = NormalDist(*denoiser.spread)
        bottom, top = (normal.cdf(math.log(v)) for v in (lowest / alpha, highest * alpha))
        share = bottom + (top - bottom) * torch.rand_like(u[:, :1])
        mean, deviation = denoiser.spread
        ends = math.log(lowest / alpha), math.log(highest * alpha)
        # Of a share next to 0 or 1 single precision knows no quantile.
        return (mean + deviation * torch.special.ndtri(share)).clamp(*ends).exp()
