"""Networks whose blocks denoise a vector that stands for the label, given the image."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import DEEPEST, at_least, checks_arguments, share
from layerwise.errors import InputError
from layerwise.models.building_blocks import Shape, chain, check_sizes, conv_layer, halved


class Denoiser(nn.Module, ABC):
    """One step of denoising: from z_{t-1} and the image x to z_t.

        z_t = a u_t(z_{t-1}, x) + b z_{t-1} [+ noise sqrt(c) eps],    eps ~ N(0, I)

    with u_t the estimate of the label's clean vector, (B, E). Input and output are one tensor each:
    x as a vector, followed by z, (B, C H W + E). The first denoiser takes the image itself, (B, C,
    H, W), with z_0 = 0 [+ noise before[1] eps]; the last gives only z_T, (B, E).

    Attributes:
        shape: of an image, (C, H, W).
        size: of z, E.
        before, after: the intended factors of the label's vector and of Gaussian noise, in z_{t-1}
            and in z_t.
        indivisible: tells `cut` not to cut inside this module.
    """

    indivisible = True

    def __init__(
        self,
        shape: Shape,
        size: int,
        before: tuple[float, float],
        after: tuple[float, float],
        coefficients: tuple[float, float, float],
        first: bool,
        last: bool,
        noise: float,
    ):
        super().__init__()
        self.shape, self.size, self.before, self.after = tuple(shape), size, before, after
        self.a, self.b, self.c = coefficients
        self.first, self.last, self.noise = first, last, noise

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Features of the image alone: (B, C, H, W) -> any shape."""

    @abstractmethod
    def estimate(self, features: Tensor, z: Tensor) -> Tensor:
        """u_t, (B, E), from the image's features and z_{t-1}, (B, E)."""

    def unpack(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The image, (B, C, H, W), and z_{t-1}, (B, E)."""
        if self.first:
            z = h.new_zeros(h.shape[0], self.size)
            if self.noise:
                z = z + self.noise * self.before[1] * torch.randn_like(z)
            return h, z
        return h[:, : -self.size].unflatten(1, self.shape), h[:, -self.size :]

    def step(self, u: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """The output: x followed by z_t; in the last denoiser, only z_t."""
        z = self.a * u + self.b * z
        if self.noise:
            z = z + self.noise * math.sqrt(self.c) * torch.randn_like(z)
        return z if self.last else torch.cat([x.flatten(1), z], 1)

    def forward(self, h: Tensor) -> Tensor:
        x, z = self.unpack(h)
        return self.step(self.estimate(self.features(x), z), x, z)

    def extra_repr(self) -> str:
        before, after = (
            f"({signal:.4g}, {noise:.4g})" for signal, noise in (self.before, self.after)
        )
        return f"before={before}, after={after}, a={self.a:.4g}, b={self.b:.4g}"


class ConvDenoiser(Denoiser):
    """The denoiser of NoProp-DT (Li, Teh & Pascanu 2025, arXiv:2503.24322).

    Three layers of convolution, BatchNorm, ReLU, pooling and dropout read the image; two linear
    layers with a shortcut read z; two more read both. Softmax weights of one vector per class give
    u_t. Deviations: the layers that read z have LayerNorm instead of BatchNorm, because z is
    distributed differently in training and at inference; if the vectors are not one-hot, every
    block has its own.
    """

    def __init__(
        self, shape: Shape, classes: int, channels: int, width: int, dropout: float, **step: object
    ):
        super().__init__(shape, **step)  # type: ignore[arg-type]
        height, wide = halved(shape, 3, "noprop_cnn")
        sizes = [shape[0], channels, 2 * channels, 4 * channels]
        self.image = nn.Sequential(
            *(conv_layer(a, b, pool=True, dropout=dropout) for a, b in itertools.pairwise(sizes)),
            nn.Flatten(),
            nn.Linear(sizes[-1] * height * wide, width),
            nn.LayerNorm(width),
        )
        self.latent1, self.latent2 = _layer(self.size, width), _layer(width, width)
        self.fuse = nn.Sequential(
            _layer(2 * width, width), _layer(width, width), nn.Linear(width, classes)
        )
        self.vectors: nn.Parameter | None = None
        if self.size != classes:
            self.vectors = nn.Parameter(torch.nn.init.orthogonal_(torch.empty(classes, self.size)))

    def features(self, x: Tensor) -> Tensor:
        return self.image(x)

    def estimate(self, features: Tensor, z: Tensor) -> Tensor:
        h = self.latent1(z)
        h = h + self.latent2(h)
        weights = F.softmax(self.fuse(torch.cat([features, h], 1)), 1)
        return weights if self.vectors is None else weights @ self.vectors


@checks_arguments
def noprop_cnn(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    steps: int = 10,
    channels: int = 32,
    width: int = 256,
    embedding: int | None = None,
    dropout: float = 0.2,
    noise: float = 0.0,
) -> nn.Sequential:
    """The network of NoProp-DT, `steps` denoisers and a linear classifier, for any rule.

    Step t is the posterior mean of a variance-preserving diffusion, from pure noise at t = 0 to the
    label's vector, with the cosine schedule (`cosine_signal`) of alpha^_t and
    r = alpha^_{t-1} / alpha^_t:

        a = sqrt(alpha^_t) (1 - r) / (1 - alpha^_{t-1})
        b = sqrt(r) (1 - alpha^_t) / (1 - alpha^_{t-1})
        c = (1 - alpha^_t) (1 - r) / (1 - alpha^_{t-1})

    Args:
        shape: of an image, (C, H, W), at least 8x8.
        num_classes: number of classes.
        steps: T, the number of denoisers.
        channels: of the first of the three convolutions; they double with every further one.
        width: units of the linear layers.
        embedding: features of a class's vector; null for one-hot vectors.
        dropout: probability of dropping a feature map.
        noise: at inference: with 1, z_0 ~ N(0, I) and every step draws from the posterior, as
            published; with 0, z_0 and all steps take their means.

    Raises:
        InputError: a size is below 1; the images are smaller than 8x8.
    """
    check_sizes("noprop_cnn", shape, num_classes)
    at_least(1, "noprop_cnn", DEEPEST, steps=steps)
    at_least(0, "noprop_cnn", noise=noise)
    share("noprop_cnn", dropout=dropout)
    size = num_classes if embedding is None else embedding
    if min(steps, channels, width, size) < 1:
        raise InputError(
            f"noprop_cnn(steps={steps}, channels={channels}, width={width}, "
            f"embedding={embedding}): give sizes of at least 1"
        )
    named: list[tuple[str, nn.Module]] = []
    for t in range(1, steps + 1):
        before, after = cosine_signal(t - 1, steps), cosine_signal(t, steps)
        denoiser = ConvDenoiser(
            shape,
            num_classes,
            channels,
            width,
            dropout,
            size=size,
            before=(math.sqrt(before), math.sqrt(1 - before)),
            after=(math.sqrt(after), math.sqrt(1 - after)),
            coefficients=posterior(before, after),
            first=t == 1,
            last=t == steps,
            noise=noise,
        )
        named.append((f"denoiser{t}", denoiser))
    return chain([*named, ("classifier", nn.Linear(size, num_classes))])


def cosine_signal(t: int, steps: int, s: float = 0.008) -> float:
    """alpha^_t, the share of the signal in z_t: 0 at t = 0, almost 1 at t = steps.

    Nichol & Dhariwal 2021 (arXiv:2102.09672), backwards in time.
    """
    return 0.0 if t == 0 else math.cos((1 - t / steps + s) / (1 + s) * math.pi / 2) ** 2


def posterior(before: float, after: float) -> tuple[float, float, float]:
    """The coefficients a, b and c of `noprop_cnn`, from alpha^_{t-1} and alpha^_t."""
    ratio = before / after
    a = math.sqrt(after) * (1 - ratio) / (1 - before)
    b = math.sqrt(ratio) * (1 - after) / (1 - before)
    return a, b, (1 - after) * (1 - ratio) / (1 - before)


def _layer(features: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, out), nn.LayerNorm(out), nn.ReLU())
