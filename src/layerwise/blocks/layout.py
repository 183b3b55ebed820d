"""The order of axes in feature maps: channels first, (C, H, W), or channels last, (H, W, C)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Shape = tuple[int, ...]


class ChannelsLastShape(tuple[int, ...]):
    """The shape (H, W, C) of feature maps whose channels are last; of a video's, (F, H, W, C).

    The batch dimension is left out. Any other tuple of three or four sizes is (C, H, W) or
    (C, F, H, W). Equal to a plain tuple of the same sizes.
    """

    __slots__ = ()


def of_image(shape: Shape) -> Shape:
    """The shape of a network's input, as far as it tells its layout: an image (H, W, 3), or a
    square one (H, H, 1) or (H, H, 4), is a `ChannelsLastShape`."""
    if len(shape) < 3 or min(shape[-3:-1]) <= 4:
        return shape
    last = shape[-1] == 3 or (shape[-1] in (1, 4) and shape[-3] == shape[-2])
    return ChannelsLastShape(shape) if last else shape


def as_laid_out(shape: Shape, like: Shape) -> Shape:
    """A shape of feature maps, in the layout of others with as many axes."""
    alike = isinstance(like, ChannelsLastShape) and len(shape) == len(like)
    return ChannelsLastShape(shape) if alike else shape


def laid_out(
    given: Shape, shapes: Sequence[Shape], run: Callable[[int], Sequence[Shape]]
) -> tuple[Shape, ...]:
    """Shapes of a network's outputs; those with channels last become `ChannelsLastShape`.

    Equal sides, in outputs for a square image, tell that channels come first. Otherwise the network
    shows where the height is: on an image twice as high, that axis of an output grows. If it takes
    no such image, the height and width of an output are the two neighbouring axes whose ratio is
    nearest to the image's, those behind the channels if both are as near.

    Args:
        given: the shape of the network's input.
        shapes: the shapes of its outputs, without the batch dimension.
        run: gives the shapes of its outputs again, for an input twice as long on the axis of this
            number, counted from the end; only of the first outputs if a later one fails.
    """
    last = isinstance(given, ChannelsLastShape)
    height, width = given[-3:-1] if last else given[-2:] if len(given) > 2 else (1, 1)
    maps = [shape for shape in shapes if len(shape) in (3, 4)]
    if all(height == width and s[-2] == s[-1] != s[-3] for s in maps):
        return tuple(shapes)
    larger = list(run(-3 if last else -2)) if len(given) > 2 else []
    larger += [()] * (len(shapes) - len(larger))
    return tuple(
        ChannelsLastShape(shape) if _is_last(shape, grown, height / width) else shape
        for shape, grown in zip(shapes, larger, strict=True)
    )


def _is_last(shape: Shape, grown: Shape, ratio: float) -> bool:
    """Whether an output has its channels last.

    Args:
        shape: of the output.
        grown: its shape for an image twice as high; () if there is none.
        ratio: the image's height, divided by its width.
    """
    if len(shape) not in (3, 4):
        return False
    if len(grown) == len(shape):
        changed = [i - len(shape) for i, n in enumerate(shape) if grown[i] != n]
        if changed in ([-3], [-2]):
            return changed == [-3]
    a, b, c = (math.log(n) if n else 0 for n in shape[-3:])
    return abs(a - b - math.log(ratio)) < abs(b - c - math.log(ratio))
