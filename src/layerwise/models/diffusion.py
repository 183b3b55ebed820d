"""A vision transformer whose blocks denoise the label, each at its own noise levels."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import DEEPEST, at_least, checks_arguments
from layerwise.errors import InputError
from layerwise.models.building_blocks import Shape, chain, check_sizes
from layerwise.models.denoisers import Denoiser
from layerwise.models.vit import Patches


class VitDenoiser(Denoiser):
    """Transformer layers F over an image's patches and one token for z, given noise level sigma.

    It has the preconditioning of Karras et al. 2022 (arXiv:2206.00364), table 1, and a readout that
    starts as the identity, because the labels' vectors are the unit vectors:

        D = s^2 / n^2 z + sigma s / n F(z / n, x, ln sigma / 4),    n^2 = sigma^2 + s^2
        u = softmax(readout(D))                               the mean of the labels' vectors

    Attributes:
        sigma_data: s, the assumed standard deviation of the labels' vectors.
        spread: the mean and standard deviation of ln sigma in training, over all denoisers.
    """

    def __init__(
        self,
        shape: Shape,
        patch: int,
        layers: int,
        width: int,
        heads: int,
        sigma_data: float,
        spread: tuple[float, float],
        **step: object,
    ):
        super().__init__(shape, **step)  # type: ignore[arg-type]
        self.sigma_data, self.spread = sigma_data, spread
        self.patches = Patches(shape, patch, width)
        self.latent = nn.Linear(self.size, width)
        self.level = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.size))
        self.readout = nn.Linear(self.size, self.size)
        nn.init.eye_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def features(self, x: Tensor) -> Tensor:
        return self.patches(x)

    def estimate(self, features: Tensor, z: Tensor) -> Tensor:
        sigma = torch.full_like(z[:, :1], self.before[1])
        return F.softmax(self.scores(features, z, sigma), 1)

    def scores(self, features: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        """readout(D), class scores (B, E), at noise levels sigma, (B, 1)."""
        s, total = self.sigma_data, torch.sqrt(sigma**2 + self.sigma_data**2)
        token = self.latent(z / total)
        level = self.level(_waves(sigma.log() / 4))
        h = torch.cat([token.unsqueeze(1), features], 1)  # (B, 1 + T, D)
        for layer in self.layers:
            h = layer(h, level)
        return self.readout((s / total) ** 2 * z + sigma * s / total * self.out(h[:, 0]))


class _Layer(nn.Module):
    """Pre-norm attention and MLP; the noise level scales and shifts the norms' outputs."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 4 * width)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = self.modulation(level).unsqueeze(1).chunk(4, 2)
        qkv = self.project(self.norm1(h) * (1 + scale1) + shift1)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, 2))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + self.out(mixed)
        return h + self.mlp(self.norm2(h) * (1 + scale2) + shift2)


@checks_arguments
def diffusion_vit(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    steps: int = 3,
    layers: int = 4,
    patch: int = 4,
    width: int = 128,
    heads: int = 4,
    noise: float = 0.0,
) -> nn.Sequential:
    """The network of DiffusionBlocks (Shing, Koyama & Akiba 2025, arXiv:2506.14202), for any rule.

    It is `steps` denoisers of `layers` transformer layers each, and a linear classifier. Noise
    levels fall from 80 to 0.002. In training, their logarithm is normal with mean -1.2 and standard
    deviation 1.2 (Karras et al. 2022), and every denoiser has an equal share of that distribution
    (`equal_shares`). A step is an Euler step from sigma_{t-1} to sigma_t:

        z_t = z_{t-1} + (sigma_t - sigma_{t-1}) (z_{t-1} - u_t) / sigma_{t-1}

    with u_t the mean of the labels' vectors under the softmax of the denoiser's class scores.

    Deviations: the labels' vectors are fixed unit vectors with one feature per class (the authors'
    are learned, have `width` features and length 1). Every denoiser has its own readout, embedding
    of patches and embedding of the noise level, because blocks share no parameter (the authors have
    one for all). Steps begin and end where the shares do (in the authors' code, at `steps` levels
    of equal probability from 80 to 0.002).

    Args:
        shape: of an image, (C, H, W); both sides multiples of `patch`.
        num_classes: number of classes.
        steps: number of denoisers.
        layers: number of transformer layers in each.
        patch: side of a patch, pixels.
        width: features of a token; the MLP of a layer has four times this number of units.
        heads: number of attention heads.
        noise: at inference: with 1, z_0 ~ N(0, 80^2); with 0, z_0 = 0.

    Raises:
        InputError: a size is below 1; `heads` does not divide `width`, or `patch` a side.
    """
    check_sizes("diffusion_vit", shape, num_classes)
    at_least(1, "diffusion_vit", DEEPEST, steps=steps, layers=layers)
    at_least(0, "diffusion_vit", noise=noise)
    if min(steps, layers, patch, width, heads) < 1 or width % heads:
        raise InputError(
            f"diffusion_vit(steps={steps}, layers={layers}, patch={patch}, width={width}, "
            f"heads={heads}): give sizes of at least 1, and a width that the heads divide"
        )
    if shape[1] % patch or shape[2] % patch:
        raise InputError(
            f"diffusion_vit(patch={patch}): {shape[1]}x{shape[2]} images do not divide into "
            f"patches of {patch}; give a patch that divides both sides"
        )
    spread = (-1.2, 1.2)
    levels = equal_shares(steps, *spread)
    named: list[tuple[str, nn.Module]] = []
    for t, (before, after) in enumerate(itertools.pairwise(levels), 1):
        denoiser = VitDenoiser(
            shape,
            patch,
            layers,
            width,
            heads,
            sigma_data=0.5,
            spread=spread,
            size=num_classes,
            before=(1.0, before),
            after=(1.0, after),
            coefficients=(1 - after / before, after / before, 0.0),
            first=t == 1,
            last=t == steps,
            noise=noise,
        )
        named.append((f"denoiser{t}", denoiser))
    return chain([*named, ("classifier", nn.Linear(num_classes, num_classes))])


def equal_shares(
    parts: int, mean: float, deviation: float, highest: float = 80.0, lowest: float = 0.002
) -> list[float]:
    """Noise levels that divide a range into parts of equal probability.

    Args:
        parts: number of parts.
        mean, deviation: ln sigma ~ N(mean, deviation^2).
        highest, lowest: the ends of the range.

    Returns:
        `parts` + 1 levels, from `highest` to `lowest`.
    """
    normal = NormalDist(mean, deviation)
    top, bottom = normal.cdf(math.log(highest)), normal.cdf(math.log(lowest))
    inner = [normal.inv_cdf(top + (bottom - top) * t / parts) for t in range(1, parts)]
    return [highest, *map(math.exp, inner), lowest]


def _waves(level: Tensor) -> Tensor:
    """Cosines and sines of rising frequency: (B, 1) -> (B, 16)."""
    angles = level * torch.exp2(torch.arange(8, device=level.device, dtype=level.dtype))
    return torch.cat([angles.cos(), angles.sin()], 1)
