"""The options of augmentation, and the random numbers that it draws for a batch.

Drawing and applying are separate. `Augment.draw` draws the random numbers of one batch on the CPU,
so that they are the same for every device. `transform.ImageTransform` applies them, on the device.

B batch, H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from layerwise.errors import InputError, choices

ATTEMPTS = 10  # to find a random box that fits into the image, as in torchvision


class Draw(NamedTuple):
    """The random numbers of one batch; None for an augmentation that is switched off.

    flip (B,) bool; corner (B, 2) top and left in the padded image; box (B, 2 * ATTEMPTS + 2)
    uniform in [0, 1), read by `pixels.boxes`; centre (B, 2) row and column of the cutout's centre;
    jitter (B, 4) factors of brightness, contrast and saturation, and the shift of the hue; grey
    (B,) bool.
    """

    flip: Tensor | None = None
    corner: Tensor | None = None
    box: Tensor | None = None
    centre: Tensor | None = None
    jitter: Tensor | None = None
    grey: Tensor | None = None


@dataclass(frozen=True)
class Augment:
    """The changes to an image between the set and the network, applied in this order.

    Args:
        crop: pad every side by this many pixels, then crop to the original size at a uniformly
            drawn position. Not together with `resized_crop`.
        pad_mode: what fills the padding: zeros (black), the reflected image, or what lies at the
            opposite edge (circular).
        resized_crop: crop a random box and scale it back to the original size, bilinear
            (torchvision's RandomResizedCrop).
        scale: smallest and largest area of that box, as a share of the image.
        ratio: smallest and largest width / height of that box.
        flip: mirror left and right with probability 1/2; or "alternating": with probability 1/2 in
            the first epoch, and from then on every image in every second epoch (Jordan 2024,
            arXiv:2404.00498, section 3.6); of several views, every second one the other way.
        jitter: brightness, contrast, saturation, hue. The first three are multiplied by factors
            drawn uniformly from [1 - s, 1 + s], but not below 0. The hue is turned by at most the
            fourth number, where 1 is once around the colour circle; give at most 1/2. SimCLR (Chen
            et al. 2020, arXiv:2002.05709, appendix A) has (0.8, 0.8, 0.8, 0.2), and half of that
            for CIFAR-10. Deviation: always in this order.
        jitter_probability: probability that an image's colours are changed.
        grey: probability that an image loses its colours; SimCLR has 0.2.
        normalize: "symmetric" to [-1, 1]; "standard" to mean 0 and standard deviation 1 over the
            training split; "none" to [0, 1]. This is the only change that is also applied outside
            training.
        mean: per channel, on the scale 0..1, instead of the training split's; with "standard".
        std: as `mean`.
        cutout: side in pixels of a square that is set to 0 after normalisation. Its centre is
            uniform over the image, so part of it may lie outside.
    """

    flip: bool | Literal["alternating"] = False
    crop: int | None = None
    pad_mode: Literal["zeros", "reflect", "circular"] = "zeros"
    resized_crop: bool = False
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] | None = None
    jitter_probability: float = 0.8
    grey: float = 0.0
    cutout: int | None = None
    normalize: Literal["symmetric", "standard", "none"] = "symmetric"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.flip not in (False, True, "alternating"):
            raise InputError(f"Augment(flip={self.flip!r}): give True, False or 'alternating'")
        known = {
            "normalize": ("symmetric", "standard", "none"),
            "pad_mode": ("zeros", "reflect", "circular"),
        }
        for name, values in known.items():
            if (got := getattr(self, name)) not in values:
                raise InputError(
                    f"Augment({name}={got!r}): not a {name}; {choices(str(got), values)}"
                )
        for name in ("crop", "cutout"):
            got = getattr(self, name)
            if got is not None and got < 1:
                raise InputError(
                    f"Augment({name}={got}): give 1 pixel or more, or None for no {name}"
                )
        if self.crop is not None and self.resized_crop:
            raise InputError(
                "Augment(crop, resized_crop): these exclude each other; give only one of them"
            )
        for name, top in (("scale", 1.0), ("ratio", float("inf"))):
            low, high = getattr(self, name)
            if not 0 < low <= high <= top:
                raise InputError(
                    f"Augment({name}={(low, high)}): give 0 < smallest <= largest"
                    + (" <= 1" if name == "scale" else "")
                )
        for name in ("jitter_probability", "grey"):
            if not 0 <= (got := getattr(self, name)) <= 1:
                raise InputError(f"Augment({name}={got}): give a probability, 0 to 1")
        if self.jitter is not None and not (
            len(self.jitter) == 4 and min(self.jitter) >= 0 and self.jitter[3] <= 0.5
        ):
            raise InputError(
                f"Augment(jitter={self.jitter}): give brightness, contrast, saturation and hue, "
                "each 0 or more and the hue at most 0.5, such as (0.4, 0.4, 0.4, 0.1)"
            )
        if (self.mean is None) != (self.std is None):
            raise InputError("Augment(mean, std): give both or neither")
        if self.mean is not None and self.normalize != "standard":
            raise InputError(
                f"Augment(mean=..., normalize={self.normalize!r}): mean and std are used only "
                "with normalize='standard'"
            )
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"Augment(std={self.std}): every value must be above 0")

    @property
    def random(self) -> bool:
        """Whether it draws random numbers, so that an image differs from one time to the next."""
        jitters = self.jitter is not None and any(self.jitter) and self.jitter_probability
        drawn = (self.flip, self.crop, self.resized_crop, self.cutout, jitters, self.grey)
        return any(drawn)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Check that images of a shape can be augmented so.

        Args:
            shape: (C, H, W).

        Raises:
            InputError: the images are too small, or have no colours to change; `mean` or `std` has
                another number of channels.
        """
        channels, height, width = shape
        short = min(height, width)
        # Reflection does not repeat the edge, so it can fill one pixel less.
        most = short - 1 if self.pad_mode == "reflect" else short
        for name, got, limit in (("crop", self.crop, most), ("cutout", self.cutout, short)):
            if got is not None and got > limit:
                raise InputError(
                    f"Augment({name}={got}): larger than the {height}x{width} images; "
                    f"give at most {limit}"
                )
        colours = self.grey > 0 or (self.jitter is not None and any(self.jitter[2:]))
        if colours and channels != 3:
            raise InputError(
                f"Augment(jitter={self.jitter}, grey={self.grey}): images with {channels} channels "
                "have no colours; leave out saturation, hue and grey: jitter=(0.4, 0.4, 0, 0)"
            )
        for name in ("mean", "std"):
            got = getattr(self, name)
            if got is not None and len(got) != channels:
                raise InputError(
                    f"Augment({name}={got}): {len(got)} values for images with {channels} "
                    "channels; give one value per channel"
                )

    def draw(self, batch: int, shape: tuple[int, int, int], generator: torch.Generator) -> Draw:
        """The random numbers of one batch of images of `shape` (C, H, W).

        Alternating flips are not among them: they depend on the image and the epoch.
        """
        _, height, width = shape
        flip = corner = box = centre = jitter = grey = None
        if self.flip is True:
            flip = torch.rand(batch, generator=generator) < 0.5
        if self.crop is not None:
            corner = torch.randint(2 * self.crop + 1, (batch, 2), generator=generator)
        if self.resized_crop:
            box = torch.rand(batch, 2 * ATTEMPTS + 2, generator=generator)
        if self.cutout is not None:
            row = torch.randint(height, (batch,), generator=generator)
            column = torch.randint(width, (batch,), generator=generator)
            centre = torch.stack([row, column], 1)
        if self.jitter is not None:
            strength = torch.tensor(self.jitter)
            changed = torch.rand(batch, 1, generator=generator) < self.jitter_probability
            uniform = (2 * torch.rand(batch, 4, generator=generator) - 1) * strength * changed
            jitter = uniform + torch.tensor([1.0, 1.0, 1.0, 0.0])
            jitter[:, :3].clamp_(min=0)
        if self.grey:
            grey = torch.rand(batch, generator=generator) < self.grey
        return Draw(flip, corner, box, centre, jitter, grey)
