"""Augmentation of a whole batch at once, each image with a draw of its own.

Drawing and applying are apart. `Augment.draw` gives the random numbers of one batch, on the CPU, so
that they are the same on every device; the functions below are deterministic and run on the
batch's device.

B batch, H height, W width, C channels, N images in the set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from layerwise.errors import InputError, choices

ATTEMPTS = 10  # of a random resized crop to fit into the image, as in torchvision


class Draw(NamedTuple):
    """The random numbers of one batch; None where the augmentation is off.

    flip (B,) bool; corner (B, 2) top and left in the padded image; box (B, 2 * ATTEMPTS + 2)
    uniform in [0, 1), read by `boxes`; centre (B, 2) row and column of the middle of the cutout;
    jitter (B, 4) factors of brightness, contrast and saturation and the shift of the hue; grey (B,)
    bool.
    """

    flip: Tensor | None = None
    corner: Tensor | None = None
    box: Tensor | None = None
    centre: Tensor | None = None
    jitter: Tensor | None = None
    grey: Tensor | None = None


@dataclass(frozen=True)
class Augment:
    """What happens to an image between the set and the network, in this order.

    Args:
        crop: pad every side by this many pixels, then crop to the size of before at a uniform
            place. Not together with `resized_crop`.
        pad_mode: what the padding holds: zeros (black) or the image reflected.
        resized_crop: a random box scaled back to the size of before, bilinear (torchvision's
            RandomResizedCrop).
        scale: least and greatest area of that box, as a share of the image.
        ratio: least and greatest width / height of that box.
        flip: left-right with probability 1/2.
        jitter: brightness, contrast, saturation, hue: change the colours by factors uniform in
            [1 - s, 1 + s] for the first three, not below 0, and turn the hue by up to the fourth,
            in turns, at most 1/2. SimCLR (Chen et al. 2020, arXiv:2002.05709, appendix A) has
            (0.8, 0.8, 0.8, 0.2), half of that for CIFAR-10. Deviation: always in this order.
        jitter_probability: of an image to have its colours changed.
        grey: probability of an image to lose its colours; SimCLR has 0.2.
        normalize: "symmetric" to [-1, 1]; "standard" to mean 0 and standard deviation 1 over the
            training split; "none" to [0, 1]. The only part that holds outside training too.
        mean: per channel, on the scale 0..1, instead of the training split's; with "standard".
        std: as `mean`.
        cutout: side in pixels of a square set to 0 after normalisation, its middle uniform over
            the image, so that part of it may lie outside.
    """

    flip: bool = False
    crop: int | None = None
    pad_mode: Literal["zeros", "reflect"] = "zeros"
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
        known = {"normalize": ("symmetric", "standard", "none"), "pad_mode": ("zeros", "reflect")}
        for name, values in known.items():
            if (got := getattr(self, name)) not in values:
                raise InputError(
                    f"Augment({name}={got!r}): not a {name}; {choices(str(got), values)}"
                )
        for name in ("crop", "cutout"):
            got = getattr(self, name)
            if got is not None and got < 1:
                raise InputError(f"Augment({name}={got}): give 1 pixel or more, or None for none")
        if self.crop is not None and self.resized_crop:
            raise InputError(
                "Augment(crop, resized_crop): both place the crop; give one of the two"
            )
        for name, top in (("scale", 1.0), ("ratio", float("inf"))):
            low, high = getattr(self, name)
            if not 0 < low <= high <= top:
                raise InputError(
                    f"Augment({name}={(low, high)}): give 0 < least <= greatest"
                    + (" <= 1" if name == "scale" else "")
                )
        for name in ("jitter_probability", "grey"):
            if not 0 <= (got := getattr(self, name)) <= 1:
                raise InputError(f"Augment({name}={got}): give a probability, 0 to 1")
        if self.jitter is not None and not (
            len(self.jitter) == 4 and min(self.jitter) >= 0 and self.jitter[3] <= 0.5
        ):
            raise InputError(
                f"Augment(jitter={self.jitter}): give brightness, contrast, saturation and hue, 0 "
                "or more, and a hue of at most 0.5, such as (0.4, 0.4, 0.4, 0.1)"
            )
        if (self.mean is None) != (self.std is None):
            raise InputError("Augment(mean, std): give both or neither")
        if self.mean is not None and self.normalize != "standard":
            raise InputError(
                f"Augment(mean=..., normalize={self.normalize!r}): mean and std are read only "
                "with normalize='standard'"
            )
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"Augment(std={self.std}): every value must be above 0")

    @property
    def random(self) -> bool:
        """Whether it draws anything: an image drawn twice then differs."""
        jitters = self.jitter is not None and any(self.jitter) and self.jitter_probability
        drawn = (self.flip, self.crop, self.resized_crop, self.cutout, jitters, self.grey)
        return any(drawn)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise InputError where an image of `shape` (C, H, W) is too small for this."""
        channels, height, width = shape
        short = min(height, width)
        # Reflection repeats no edge, so it has one pixel less to give.
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
                f"Augment(jitter={self.jitter}, grey={self.grey}): images of {channels} channels "
                "have no colours; leave out saturation, hue and grey: jitter=(0.4, 0.4, 0, 0)"
            )
        for name in ("mean", "std"):
            got = getattr(self, name)
            if got is not None and len(got) != channels:
                raise InputError(
                    f"Augment({name}={got}): {len(got)} values for images of {channels} channels; "
                    "give one each"
                )

    def draw(self, batch: int, shape: tuple[int, int, int], generator: torch.Generator) -> Draw:
        """The random numbers of one batch of images of `shape` (C, H, W)."""
        _, height, width = shape
        flip = corner = box = centre = jitter = grey = None
        if self.flip:
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


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy from the CPU without waiting: a copy from pinned memory does not hold up the host."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def pad(images: Tensor, margin: int, mode: str) -> Tensor:
    """(N, H, W, C) -> (N, H + 2 margin, W + 2 margin, C), zeros or reflected about the edge."""
    count, height, width, channels = images.shape
    if mode == "reflect":
        rows = _reflected(height, margin, images.device)
        columns = _reflected(width, margin, images.device)
        return images.index_select(1, rows).index_select(2, columns)
    out = images.new_zeros(count, height + 2 * margin, width + 2 * margin, channels)
    out[:, margin : margin + height, margin : margin + width] = images
    return out


def _reflected(side: int, margin: int, device: torch.device) -> Tensor:
    place = torch.arange(-margin, side + margin, device=device).abs()
    return torch.where(place >= side, 2 * (side - 1) - place, place)


def crop_flip(
    images: Tensor, index: Tensor, corner: Tensor | None, flip: Tensor | None, side: tuple[int, int]
) -> Tensor:
    """Cut one window from each chosen image, mirrored where told, in one `index_select`.

    Args:
        images: uint8 (N, H', W', C), contiguous, padded already.
        index: int64 (B,), which images.
        corner: int64 (B, 2), top and left of the window; None for (0, 0).
        flip: bool (B,), or None for none.
        side: (H, W) of the window.

    Returns:
        uint8 (B, H, W, C).
    """
    _, tall, wide, channels = images.shape
    height, width = side
    rows_BH = torch.arange(height, device=images.device)[None]
    columns_BW = torch.arange(width, device=images.device)[None]
    if flip is not None:
        columns_BW = torch.where(flip[:, None], width - 1 - columns_BW, columns_BW)
    if corner is not None:
        rows_BH = rows_BH + corner[:, :1]
        columns_BW = columns_BW + corner[:, 1:]
    rows_BH = (rows_BH + index[:, None] * tall) * wide
    pixel_BHW = rows_BH[:, :, None] + columns_BW[:, None, :]
    chosen = images.view(-1, channels).index_select(0, pixel_BHW.view(-1))
    return chosen.view(len(index), height, width, channels)


def boxes(
    uniform: Tensor,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """The boxes of a random resized crop, by torchvision's rule.

    The first of `ATTEMPTS` boxes that fits into the image counts; where none does, the largest
    central one within the ratio.

    Args:
        uniform: in [0, 1), (B, 2 * ATTEMPTS + 2), on the CPU: areas, ratios, row and column.
        height, width: of the image, pixels.

    Returns:
        int64 (B, 4): top, left, height, width.
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform[:, :ATTEMPTS])
    low, high = torch.tensor(ratio).log().tolist()  # uniform in the logarithm: 3/4 is as 4/3
    aspect = (low + (high - low) * uniform[:, ATTEMPTS : 2 * ATTEMPTS]).exp()
    wide, tall = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)  # of equal values, the first
    wide, tall = wide.gather(1, first)[:, 0], tall.gather(1, first)[:, 0]
    place_y, place_x = uniform[:, -2], uniform[:, -1]
    top = (place_y * (height - tall + 1)).floor().minimum(height - tall)
    left = (place_x * (width - wide + 1)).floor().minimum(width - wide)

    tall_0, wide_0 = height, width
    if width / height < ratio[0]:
        tall_0 = round(width / ratio[0])
    elif width / height > ratio[1]:
        wide_0 = round(height * ratio[1])
    central = ((height - tall_0) // 2, (width - wide_0) // 2, tall_0, wide_0)
    fallback = torch.tensor(central)
    found = torch.stack([top, left, tall, wide], 1).long()
    return torch.where(fits.any(1, keepdim=True), found, fallback)


def resized_crop(images: Tensor, box: Tensor, flip: Tensor | None) -> Tensor:
    """Scale a box of each image back to the full size, bilinear, as two matrix products.

    Interpolation along one side is a matrix with at most two entries a row, made from the hat
    function; the flip is the same matrix upside down. Nothing is gathered, so it is as fast as the
    device multiplies.

    Args:
        images: uint8 (B, H, W, C).
        box: int64 (B, 4), from `boxes`.
        flip: bool (B,), or None for none.

    Returns:
        float32 0..255 (B, C, H, W).
    """
    batch, height, width, channels = images.shape
    rows_BHh = _interpolation(box[:, 0], box[:, 2], height, None)
    columns_BWw = _interpolation(box[:, 1], box[:, 3], width, flip)
    # Autocast would round the pixels to 8 bits of mantissa.
    with torch.autocast(images.device.type, enabled=False):
        x = rows_BHh @ images.view(batch, height, width * channels).float()
        x = x.view(batch, height, width, channels).permute(0, 3, 1, 2)
        x = x.reshape(batch, channels * height, width) @ columns_BWw.mT
    return x.view(batch, channels, height, width)


def _interpolation(start: Tensor, length: Tensor, side: int, flip: Tensor | None) -> Tensor:
    """(B, side out, side in): what each pixel of the result takes from each of the image."""
    out = torch.arange(side, device=start.device, dtype=torch.float32)[None]
    if flip is not None:
        out = torch.where(flip[:, None], side - 1 - out, out)
    place = (out + 0.5) * (length / side)[:, None] - 0.5
    place = place.clamp_min(0).minimum(length[:, None] - 1.0) + start[:, None]  # stays in the box
    pixel = torch.arange(side, device=start.device, dtype=torch.float32)
    return (1 - (place[:, :, None] - pixel).abs()).clamp_min_(0)


LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue; ITU-R BT.601


def luminance(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W): the weighted mean of red, green and blue; of one channel it is
    that channel."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x.split(1, 1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def jitter(x: Tensor, factors: Tensor, hue: bool) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, one after the other, as
    torchvision's ColorJitter does.

    Args:
        x: float 0..255, (B, C, H, W).
        factors: (B, 4), as in `Draw`.
        hue: whether any image's hue is to be turned.
    """
    brightness, contrast, saturation, turns = factors.to(x.dtype)[:, :, None, None, None].unbind(1)
    x = (x * brightness).clamp_(0, 255)
    middle = luminance(x).mean((2, 3), keepdim=True)
    x = (middle + contrast * (x - middle)).clamp_(0, 255)
    middle = luminance(x)
    x = (middle + saturation * (x - middle)).clamp_(0, 255)
    return turn_hue(x, turns[:, :, :, 0]) if hue else x


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue around the colour circle.

    With the hue on the scale 0..6, value V = max(R, G, B), chroma C = V - min(R, G, B):

        k_n = (n + hue) mod 6,    V - C max(0, min(k_n, 4 - k_n, 1))    for n = 5, 3, 1

    are red, green and blue.

    Args:
        x: (B, 3, H, W), not negative.
        turns: (B, 1, 1).
    """
    value, largest = x.max(1)
    chroma = value - x.amin(1)
    red, green, blue = x.unbind(1)
    by = chroma.where(chroma > 0, 1)
    after_red, after_green, after_blue = (green - blue) / by, (blue - red) / by, (red - green) / by
    hue = torch.where(largest == 1, 2 + after_green, 4 + after_blue)
    hue = torch.where(largest == 0, after_red, hue) + 6 * turns
    n = torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype)[:, None, None]
    k = (n + hue[:, None]).remainder_(6)
    out = value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)
    return torch.where(turns[:, None] != 0, out, x)


class Normalize:
    """Bytes to float: (x - mean) / std, in place after one conversion.

    Subtracting and dividing, instead of one multiply-add, makes the ends exact: 0 and 255 become
    -1 and 1 with "symmetric".

    Args:
        mean, std: per channel on the scale 0..255.
        side: (H, W).
        channels_last: memory format of what is returned.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        side: tuple[int, int],
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self.mean = torch.tensor(mean, device=device)
        self.std = torch.tensor(std, device=device)
        self.channels_last = channels_last
        # One value a byte: broadcasting over three channels leaves the vector units idle.
        self.row_mean = self.mean.repeat(side[0] * side[1])
        self.row_std = self.std.repeat(side[0] * side[1])

    def bytes(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> float32 (B, C, H, W)."""
        if self.channels_last:
            x = images.flatten(1).float().sub_(self.row_mean).div_(self.row_std)
            return x.view(images.shape).permute(0, 3, 1, 2)
        x = images.permute(0, 3, 1, 2)
        return self.floats(x.to(torch.float32, memory_format=torch.contiguous_format))

    def floats(self, x: Tensor) -> Tensor:
        """float32 0..255 (B, C, H, W) -> the same, normalised, in place."""
        x.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def back(self, x: Tensor) -> Tensor:
        """Normalised (B, C, H, W) -> on the scale 0..255."""
        return x * self.std[:, None, None] + self.mean[:, None, None]


def cutout(x: Tensor, centre: Tensor, side: int) -> Tensor:
    """Set a square of each image to 0, in place.

    Args:
        x: (B, C, H, W).
        centre: int64 (B, 2), row and column; the square starts `side // 2` before.
        side: pixels.
    """
    start = centre - side // 2
    inside = []
    for axis, length in enumerate(x.shape[2:]):
        place = torch.arange(length, device=x.device)[None] - start[:, axis : axis + 1]
        inside.append((place >= 0) & (place < side))
    rows_BH, columns_BW = inside
    return x.masked_fill_((rows_BH[:, :, None] & columns_BW[:, None, :])[:, None], 0)
