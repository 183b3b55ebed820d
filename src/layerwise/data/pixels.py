"""Operations on the pixels of a whole batch at once, deterministic and on the batch's device.

Every image may have its own window, box, colours and cutout, which `augment.Augment.draw` draws.

B batch, H height, W width, C channels, N images in the set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.autocast import without_autocast
from layerwise.data.augment import ATTEMPTS

LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue; ITU-R BT.601


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; from the CPU through pinned memory, so that the host need not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def pad(images: Tensor, margin: int, mode: str) -> Tensor:
    """(N, H, W, C) -> (N, H + 2 margin, W + 2 margin, C): zeros, reflected about the edge, or
    circular, continued at the opposite edge."""
    count, height, width, channels = images.shape
    if mode in ("reflect", "circular"):
        continued = _reflected if mode == "reflect" else _wrapped
        rows = continued(height, margin, images.device)
        columns = continued(width, margin, images.device)
        return images.index_select(1, rows).index_select(2, columns)
    out = images.new_zeros(count, height + 2 * margin, width + 2 * margin, channels)
    out[:, margin : margin + height, margin : margin + width] = images
    return out


def _reflected(side: int, margin: int, device: torch.device) -> Tensor:
    place = torch.arange(-margin, side + margin, device=device).abs()
    return torch.where(place >= side, 2 * (side - 1) - place, place)


def _wrapped(side: int, margin: int, device: torch.device) -> Tensor:
    return torch.arange(-margin, side + margin, device=device) % side


def crop_flip(
    images: Tensor, index: Tensor, corner: Tensor | None, flip: Tensor | None, side: tuple[int, int]
) -> Tensor:
    """Cut one window from each chosen image and mirror some, all in one `index_select`.

    Args:
        images: uint8 (N, H', W', C), contiguous, already padded.
        index: int64 (B,), the chosen images.
        corner: int64 (B, 2), top and left of the window; None for (0, 0).
        flip: bool (B,), the images to mirror; None for none.
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
    """The boxes of a random resized crop, chosen as torchvision does.

    The first of `ATTEMPTS` boxes that fits into the image is taken; if none fits, it is the largest
    central box within the ratio.

    Args:
        uniform: in [0, 1), (B, 2 * ATTEMPTS + 2), on the CPU: areas, ratios, row and column.
        height, width: of the image, pixels.
        scale: smallest and largest area of a box, as a share of the image.
        ratio: smallest and largest width / height of a box.

    Returns:
        int64 (B, 4): top, left, height, width.
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform[:, :ATTEMPTS])
    low, high = (
        torch.tensor(ratio).log().tolist()
    )  # uniform in the logarithm: 3/4 is as likely as 4/3
    aspect = (low + (high - low) * uniform[:, ATTEMPTS : 2 * ATTEMPTS]).exp()
    wide, tall = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)  # the first of equal values
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

    Interpolation along one side is a matrix with at most two entries per row, made from the hat
    function; mirroring reverses the rows of that matrix. Nothing is gathered, so the speed is that
    of matrix products.

    Args:
        images: uint8 (B, H, W, C).
        box: int64 (B, 4), from `boxes`.
        flip: bool (B,), the images to mirror; None for none.

    Returns:
        float32 0..255 (B, C, H, W).
    """
    batch, height, width, channels = images.shape
    rows_BHh = _interpolation(box[:, 0], box[:, 2], height, None)
    columns_BWw = _interpolation(box[:, 1], box[:, 3], width, flip)
    # Autocast would round the pixels to 8 bits of mantissa.
    with without_autocast(images.device):
        x = rows_BHh @ images.view(batch, height, width * channels).float()
        x = x.view(batch, height, width, channels).permute(0, 3, 1, 2)
        x = x.reshape(batch, channels * height, width) @ columns_BWw.mT
    return x.view(batch, channels, height, width)


def _interpolation(start: Tensor, length: Tensor, side: int, flip: Tensor | None) -> Tensor:
    """(B, side out, side in): the weight of every input pixel in every output pixel."""
    out = torch.arange(side, device=start.device, dtype=torch.float32)[None]
    if flip is not None:
        out = torch.where(flip[:, None], side - 1 - out, out)
    place = (out + 0.5) * (length / side)[:, None] - 0.5
    place = place.clamp_min(0).minimum(length[:, None] - 1.0) + start[:, None]  # stays in the box
    pixel = torch.arange(side, device=start.device, dtype=torch.float32)
    return (1 - (place[:, :, None] - pixel).abs()).clamp_min_(0)


def luminance(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W): the weighted mean of red, green and blue.

    Images that do not have three channels are returned as they are.
    """
    if x.shape[1] != 3:
        return x
    red, green, blue = x.split(1, 1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def jitter(x: Tensor, factors: Tensor, hue: bool) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, in this order.

    The changes are those of torchvision's ColorJitter.

    Args:
        x: float 0..255, (B, C, H, W).
        factors: (B, 4), as in `Draw`.
        hue: whether the hue of any image changes.
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

    With the hue on the scale 0..6, value V = max(R, G, B) and chroma C = V - min(R, G, B), the new
    red, green and blue are

        V - C max(0, min(k_n, 4 - k_n, 1)),    k_n = (n + hue) mod 6,    for n = 5, 3, 1

    Args:
        x: (B, 3, H, W), not negative.
        turns: (B, 1, 1), how far to turn the hue of each image; 1 is once around the circle.
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
    """Converts bytes to floats and normalises them: (x - mean) / std.

    Subtracting and dividing, instead of one multiply-add, is exact at both ends: with "symmetric",
    0 and 255 become -1 and 1.

    Args:
        mean, std: per channel, on the scale 0..255.
        side: (H, W).
        device: of the images.
        channels_last: memory format of the result.
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
        # One value for every byte: broadcasting over three channels leaves the vector units idle.
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
        """float32 0..255 (B, C, H, W) -> the same normalised, in place."""
        x.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def back(self, x: Tensor) -> Tensor:
        """Normalised (B, C, H, W) -> the same on the scale 0..255."""
        return x * self.std[:, None, None] + self.mean[:, None, None]


def cutout(x: Tensor, centre: Tensor, side: int) -> Tensor:
    """Set a square of each image to 0, in place.

    Args:
        x: (B, C, H, W).
        centre: int64 (B, 2), row and column; the square starts `side // 2` before it.
        side: of the square, pixels.
    """
    start = centre - side // 2
    inside = []
    for axis, length in enumerate(x.shape[2:]):
        place = torch.arange(length, device=x.device)[None] - start[:, axis : axis + 1]
        inside.append((place >= 0) & (place < side))
    rows_BH, columns_BW = inside
    return x.masked_fill_((rows_BH[:, :, None] & columns_BW[:, None, :])[:, None], 0)
