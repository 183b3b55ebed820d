"""Generated pairs of views that depend on each other through the label, more or less."""

from __future__ import annotations

import torch

from layerwise.arguments import at_least, checks_arguments, positive
from layerwise.data.images import Images
from layerwise.data.splits import Parts
from layerwise.errors import InputError

TEST = 4_000  # samples of the test part
MOST_NUMBERS = 1 << 28  # of a view of all samples
REACH = 4  # standard deviations of the noise that bytes hold


@checks_arguments
def views(
    dependence: float = 0.0,
    classes: int = 10,
    features: int = 50,
    noise: float = 5.0,
    samples: int = 4_000,
    seed: int = 0,
) -> Parts:
    """Two views of a random class, X1 and X2, side by side: X2 is the middle half of a row.

    After the simulations of Lee et al. 2020 (arXiv:2008.01064). With centres m1 and m2 of every
    class drawn from U[0, 10), noise n1 and n2 from N(0, noise^2) and a = `dependence`:

        X1 = m1[y] + n1,    X2 = (1 - a) (m2[y] + n2) + a X1

    With dependence 0, X1 and X2 are independent given the class. `Inpaint`, whose hole is the
    middle half of an image, predicts X2 from X1. Deviations: both views have the same number of
    features, and features are bytes. The noise is ours; the paper's own is not known to us.

    Args:
        dependence: a, from 0 to 1.
        classes: number of classes, equally likely.
        features: of each view, an even number.
        noise: standard deviation.
        samples: number of training samples; the test part has another 4,000.
        seed: of the centres and of the samples.

    Raises:
        InputError: a number out of range.
    """
    at_least(0, "views", 1, dependence=dependence)
    at_least(2, "views", classes=classes, features=features)
    if features % 2:
        raise InputError(f"views(features={features}): give an even number")
    at_least(1, "views", MOST_NUMBERS // features, samples=samples, classes=classes)
    at_least(0, "views", seed=seed)
    positive("views", noise=noise)
    generator = torch.Generator().manual_seed(seed)
    centres = 10 * torch.rand(2, classes, features, generator=generator)
    y = torch.randint(classes, (samples + TEST,), generator=generator)
    first, second = centres[:, y] + noise * torch.randn(2, len(y), features, generator=generator)
    second = (1 - dependence) * second + dependence * first
    half = features // 2
    row = torch.cat([first[:, :half], second, first[:, half:]], 1)
    low, high = -REACH * noise, 10 + REACH * noise
    pixels = ((row - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8)
    images = Images(pixels[:, None, :, None], y)
    place = torch.arange(len(y))
    names = tuple(f"class {k}" for k in range(classes))
    return Parts(images.subset(place[:samples]), None, images.subset(place[samples:]), names)
