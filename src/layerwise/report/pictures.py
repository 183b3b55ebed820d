"""Pictures of a network in training: reconstructions and first-layer filters, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.objectives.batch import Batch
from layerwise.rules.base import Rule

Write = Callable[[str, bytes], None]
LogImage = Callable[[str, np.ndarray, int], None]  # name, (H, W, 3) uint8, epoch

IMAGE, FILTER = 80, 40  # the least side of a picture of an image and of a filter, pixels
GAP, TITLE = 4, 22  # the space between images and above them, pixels


@dataclass(frozen=True)
class Pictures:
    """Draws pictures of a network in training, always for the same images.

    Call it with an epoch and a rule in eval mode. It writes `pictures/epoch-003-block-0.png` for
    the first, the middle and the last block that makes images, and
    `pictures/epoch-003-filters.png` for the network's first convolution.

    Args:
        x: images as the network takes them, (B, C, H, W).
        y: their labels, (B,).
        denormalize: converts images as the network takes them to the scale 0..1.
        write: writes a file, from its name and content.
        log: each logs a picture, from its name, the picture, (H, W, 3) uint8, and the epoch.
    """

    x: Tensor
    y: Tensor
    denormalize: Callable[[Tensor], Tensor]
    write: Write
    log: Sequence[LogImage] = ()

    def __call__(self, epoch: int, rule: Rule) -> None:
        found = reconstructions(rule, self.x, self.y)
        images = {
            i: (self._shown(target), self._shown(prediction))
            for i, (target, prediction) in found.items()
        }
        drawn = draw_reconstructions(images, rule.blocks.names, epoch)
        filters = draw_filters(rule.blocks, f"epoch {epoch}, filters of the first layer")
        drawn |= {} if filters is None else {"filters": filters}
        for name, picture in drawn.items():
            self.write(f"pictures/epoch-{epoch:03d}-{name}.png", as_png(picture))
            for log in self.log:
                log(f"pictures/{name}", picture, epoch)

    def _shown(self, images: Tensor) -> Tensor:
        """The images on the scale 0..1; values outside are clipped."""
        return self.denormalize(images.float()).clamp(0, 1)


@torch.no_grad()
def reconstructions(rule: Rule, x: Tensor, y: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """The target and the prediction, both (B, C, H, W) on the scale of `x`, under the number of
    each block whose objective makes images.

    Args:
        rule: in eval mode.
        x: images, as the network takes them, (B, C, H, W).
        y: their labels, (B,).
    """
    batch, found = Batch(x, y), {}
    with rule.blocks.passes(batch.augmented) as batch.passes:
        h = rule.reading.first_input(batch)
        for k in range(len(rule.blocks)):
            h, activity = rule.run(k, h, batch)
            objective = rule.objectives.get(k)
            images = None if objective is None else objective.illustrate(activity, batch)
            if images is not None:
                found[k] = images
    return found


def draw_reconstructions(
    pictures: Mapping[int, tuple[Tensor, Tensor]], names: Sequence[str], epoch: int
) -> dict[str, np.ndarray]:
    """Draw the targets of blocks above their predictions.

    Args:
        pictures: block number -> target and prediction, (B, C, H, W) on the scale 0..1. Three
            channels are red, green and blue; of any other number the mean is shown.
        names: of all blocks.
        epoch: for the title.

    Returns:
        `block-0` -> (H', W', 3) uint8, for the first, the middle and the last of the blocks.
    """
    blocks = sorted(pictures)
    chosen = sorted({blocks[k] for k in (0, len(blocks) // 2, -1)}) if blocks else []
    drawn = {}
    for i in chosen:
        target, prediction = pictures[i]
        side = (_enlarged(target.shape[-2], IMAGE), _enlarged(target.shape[-1], IMAGE))
        both = torch.cat([_colours(target, side), _colours(prediction, side)])
        title = f"epoch {epoch}, block {i} ({names[i]}): target above, prediction below"
        drawn[f"block-{i}"] = _titled(both, len(target), title)
    return drawn


def first_filters(network: nn.Module) -> nn.Conv2d | None:
    """The network's first layer with weights; None if it is not a convolution, or has a kernel of
    one pixel."""
    layers = (m for m in network.modules() if isinstance(getattr(m, "weight", None), Tensor))
    first = next(layers, None)
    drawn = isinstance(first, nn.Conv2d) and first.kernel_size != (1, 1)
    return first if drawn else None  # type: ignore[return-value]


def draw_filters(network: nn.Module, title: str) -> np.ndarray | None:
    """Draw the filters of the first layer, each scaled from its smallest to its largest weight.

    Args:
        network: the network; its first layer with weights is drawn.
        title: above the filters.

    Returns:
        (H', W', 3) uint8; None if there are no filters to see (`first_filters`).
    """
    first = first_filters(network)
    if first is None:
        return None
    height, width = first.kernel_size
    filters = _colours(
        first.weight.detach().float(), (_enlarged(height, FILTER), _enlarged(width, FILTER))
    )
    low, high = filters.amin((1, 2, 3), keepdim=True), filters.amax((1, 2, 3), keepdim=True)
    scaled = (filters - low) / (high - low).clamp_min(torch.finfo(filters.dtype).tiny)
    return _titled(scaled, 16, title)


def one_below_another(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) uint8 in one, on white."""
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate(
        [
            np.pad(p, ((0, GAP), (0, width - p.shape[1]), (0, 0)), constant_values=255)
            for p in pictures
        ]
    )


def as_png(picture: np.ndarray) -> bytes:
    """A PNG file of a picture, (H, W, 3) uint8."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="png")
    return content.getvalue()


def _enlarged(side: int, least: int) -> int:
    """The smallest multiple of `side` that is at least `least`."""
    return side * math.ceil(least / side)


def _colours(images: Tensor, side: tuple[int, int]) -> Tensor:
    """The images with three channels, enlarged to (B, 3, *side); a pixel becomes a square."""
    if images.shape[1] != 3:
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return F.interpolate(images.cpu(), side, mode="nearest")


def _titled(images: Tensor, columns: int, title: str) -> np.ndarray:
    """Arrange images (B, 3, H, W) on the scale 0..1 in rows, below a title."""
    from torchvision.utils import make_grid  # slow to import, and only needed here

    grid = make_grid(images, nrow=columns, padding=GAP, pad_value=1.0)
    font = ImageFont.load_default(size=13)
    lacking = max(0, math.ceil(font.getbbox(title)[2]) + 2 * GAP - grid.shape[-1])
    grid = F.pad(grid, (0, lacking, TITLE, 0), value=1.0)
    pixels = (grid * 255).round().to(torch.uint8).permute(1, 2, 0)
    picture = Image.fromarray(pixels.numpy())
    ImageDraw.Draw(picture).text((GAP, GAP), title, fill="black", font=font)
    return np.asarray(picture)
