"""The order of axes in feature maps: channels first, (C, H, W), or channels last, (H, W, C)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence

Shape = tuple[int, ...]


class ChannelsLastShape(tuple[int, ...]):
    """The shape (H, W, C) of feature maps whose channels are last; of a video's, (F, H, W, C).

    The batch dimension is left out. Any other tuple of three or four sizes is (C, H, W) or
    (C, F, H, W). Equal to a plain tuple of the same sizes.
    """

    __slots__ = ()


def of_image(shape: Shape) -> Shape:
    """The shape of a network's input, in the layout that it seems to have: an image (H, W, 3), or a
    square one (H, H, 1) or (H, H, 4), is a `ChannelsLastShape`."""
    shape = tuple(shape)
    if len(shape) < 3 or min(shape[-3:-1]) <= 4:
        return shape
    last = shape[-1] == 3 or (shape[-1] in (1, 4) and shape[-3] == shape[-2])
    return ChannelsLastShape(shape) if last else shape


def as_laid_out(shape: Shape, like: Shape) -> Shape:
    """A shape of feature maps, in the layout of others with as many axes."""
    alike = isinstance(like, ChannelsLastShape) and len(shape) == len(like)
    return ChannelsLastShape(shape) if alike else shape


def laid_out(
    image: Shape, shapes: Sequence[Shape], run: Callable[[int], Iterable[Shape]]
) -> tuple[Shape, ...]:
    """The shapes of an image and of a network's outputs; maps with channels last become
    `ChannelsLastShape`.

    Square maps of a square image whose channels are of another number, (C, H, H), are taken as they
    look. Otherwise the network shows it: it runs on images twice as long on each of the last three
    axes in turn. The two axes on which it gets further are height and width, since a layer accepts
    no other number of channels. In an output, channels are the axis that does not grow with them.
    Where nothing grows (behind a pooling to a fixed size), an output has the layout of the one
    before. Where no larger image got to, neighbouring axes with the image's ratio are height and
    width.

    Args:
        image: the shape of the network's input, without the batch dimension, as `of_image` has it;
            its layout counts where the network takes as many channels as it is given.
        shapes: of its outputs.
        run: gives `shapes` again, for an input twice as long on the axis of this number, counted
            from the end, up to one at which the network fails.
    """
    maps = [shape for shape in shapes if len(shape) in (3, 4)]
    last = isinstance(image, ChannelsLastShape)
    square = len(image) > 2 and not last and image[-2] == image[-1]
    if all(square and s[-2] == s[-1] != s[-3] for s in maps):
        return (image, *shapes)
    larger = {axis: _until_failure(run(axis)) for axis in (-1, -2, -3)} if len(image) > 2 else {}
    reached = {axis: len(found) for axis, found in larger.items()}
    if larger and reached[-1] != reached[-3]:
        last = reached[-3] > reached[-1]
    sides = [found for axis, found in larger.items() if axis != (-1 if last else -3)]
    height, width = (image[-3:-1] if last else image[-2:]) if sides else (1, 1)
    layouts: list[Shape] = [ChannelsLastShape(image) if last else tuple(image)]
    for k, shape in enumerate(shapes):
        if len(shape) in (3, 4):
            grown = [found[k] for found in sides if k < len(found)]
            last = _is_last(shape, grown, height / width, last)
        layouts.append(ChannelsLastShape(shape) if last and len(shape) in (3, 4) else shape)
    return tuple(layouts)


def _until_failure(shapes: Iterable[Shape]) -> list[Shape]:
    found: list[Shape] = []
    with contextlib.suppress(Exception):  # any error of a network at a size that it does not take
        for shape in shapes:
            found.append(shape)
    return found


def _is_last(shape: Shape, grown: Sequence[Shape], ratio: float, before: bool) -> bool:
    """Whether an output has its channels last.

    Args:
        shape: of the output.
        grown: its shapes for larger images.
        ratio: the image's height, divided by its width.
        before: whether the output before has its channels last.
    """
    alike = [other for other in grown if len(other) == len(shape)]
    grows = {i for other in alike for i in (-1, -2, -3) if other[i] != shape[i]}
    if -1 in grows or -3 in grows:
        return -1 not in grows
    if alike:
        return before
    a, b, c = (math.log(max(n, 1)) for n in shape[-3:])
    as_last, as_first = abs(a - b - math.log(ratio)), abs(b - c - math.log(ratio))
    return before if math.isclose(as_last, as_first, abs_tol=1e-9) else as_last < as_first
