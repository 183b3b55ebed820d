"""The receptive field of every block's output, measured on the network itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwise.blocks.chain import Blocks
from layerwise.blocks.copies import copied
from layerwise.blocks.layout import ChannelsLastShape, Shape
from layerwise.blocks.parts import modules_in_order
from layerwise.blocks.unchanged import unchanged
from layerwise.errors import InputError

LARGEST = 1024  # pixels; a block's field that is larger than such a canvas counts as global
AREA = 2**16  # positions of the largest canvas; bounds a probe's memory


@dataclass(frozen=True)
class ReceptiveField:
    """The region of the image that one position of a block's output depends on, (height, width).

    The image's border is ignored: a field may be larger than the image.

    Attributes:
        size: the region's size, in pixels.
        stride: the distance from one position's region to the next, in pixels.
        offset: the coordinate of the centre of position (0, 0)'s region, in pixels; the centre of
            the first pixel is 0. For a single convolution it is (kernel - 1) / 2 - padding.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    offset: tuple[float, float]


def receptive_fields(blocks: Blocks) -> tuple[ReceptiveField | None, ...]:
    """The receptive field of every block's output, whatever the blocks consist of.

    The fields are measured, not looked up in a table of layers. A NaN in the input reaches exactly
    the outputs that depend on it. Each block runs alone, in float64 and eval mode on the CPU, on
    canvases of other sizes than its own, with NaN in the rows (then columns) on one side of a line.
    Bisecting the line's position gives the first and last row that an output far from the border
    reads. The blocks' windows compose by the arithmetic of Araujo, Norris & Sim 2019 (Distill,
    doi:10.23915/distill.00021). The blocks are left unchanged.

    Adaptive pooling to more than one position has no field of its own. It counts as the pooling
    that it is at the image's own size, if its windows are the same everywhere.

    Args:
        blocks: the blocks, made with an example.

    Returns:
        One for each block. None means that there is no such region: every output depends on the
        whole image, whatever its size (flatten and linear, attention, global pooling,
        squeeze-and-excitation); the output is not a feature map (vectors, tokens); positions read
        regions of different size or distance (windowed attention, upsampling); a block takes inputs
        of one size only; or one block alone reads more than about a thousand pixels. Every block
        after a None has None, too.

    Raises:
        InputError: blocks made without an example.
    """
    if not isinstance(blocks, Blocks) or blocks.input_shape is None or blocks.shapes is None:
        got = "made without an example" if isinstance(blocks, Blocks) else type(blocks).__name__
        raise InputError(
            f"receptive_fields(blocks): got blocks {got}; shapes are needed: "
            "cut(model, blocks=4, example=images), or Blocks([...], example=images)"
        )
    image = blocks.input_shape
    rows = columns = _Window(1, 1, 0)
    fields: list[ReceptiveField | None] = []
    with unchanged(blocks), torch.no_grad():
        inputs = (image, *blocks.shapes[:-1])
        for block, before, after in zip(blocks, inputs, blocks.shapes, strict=True):
            channels_last = [isinstance(shape, ChannelsLastShape) for shape in (before, after)]
            windows = None
            if len(before) == len(after) == 3 and None not in fields:
                largest = max(256, LARGEST // min(rows.stride, columns.stride))
                windows = _windows(block, before, channels_last, largest)
            if windows is None:
                fields.append(None)
                continue
            rows, columns = windows[0].after(rows), windows[1].after(columns)
            fields.append(
                ReceptiveField(
                    (rows.size, columns.size),
                    (rows.stride, columns.stride),
                    (rows.middle, columns.middle),
                )
            )
    return tuple(fields)


@dataclass(frozen=True)
class _Window:
    """A block's window on one axis: output o depends on `size` inputs from stride * o + start."""

    size: int
    stride: int
    start: int

    @property
    def middle(self) -> float:
        return self.start + (self.size - 1) / 2

    def after(self, first: _Window) -> _Window:
        """This window behind another: on the inputs of `first`, whose outputs it reads."""
        return _Window(
            size=first.size + (self.size - 1) * first.stride,
            stride=first.stride * self.stride,
            start=first.start + self.start * first.stride,
        )


def _windows(
    block: nn.Module, shape: Shape, channels_last: Sequence[bool], largest: int
) -> tuple[_Window, _Window] | None:
    """The windows of a block along its rows and along its columns; None if it has none.

    Args:
        block: the block.
        shape: the shape of its input, without the batch dimension.
        channels_last: whether its input, and its output, are (H, W, C).
        largest: the largest side of a canvas to try, in positions of its input.
    """
    try:
        parts = modules_in_order(block) if getattr(block, "chain", None) else [block]
        block = nn.Sequential(*map(copied, parts)).to("cpu", torch.float64).eval()
        _fix_adaptive_pooling(block, shape)
    except Exception:  # a block that cannot be copied or run in double precision
        return None
    sides, channels = (shape[:2], shape[2]) if channels_last[0] else (shape[1:], shape[0])
    found = []
    for axis in (0, 1):
        probe = _Probe(block, channels, axis, *channels_last)
        window = _window(probe, sides[axis], sides[1 - axis], largest)
        if window is None:
            return None
        found.append(window)
    return found[0], found[1]


@dataclass
class _Probe:
    """Runs a block on canvases with NaN in some of the rows (`axis` 0) or columns (`axis` 1).

    Attributes:
        block: the block, in float64.
        channels: the channels of its input.
        axis: the axis that is measured.
        reads_channels_last, gives_channels_last: whether its input, and output, are (H, W, C).
        width: the canvas's side across the axis; 0 before it is found.
    """

    block: nn.Module
    channels: int
    axis: int
    reads_channels_last: bool
    gives_channels_last: bool
    width: int = 0

    def __call__(self, length: int, nans: Sequence[slice]) -> Tensor:
        """Whether NaN reaches each output row, (len(nans), output rows) bool.

        Args:
            length: the number of input rows.
            nans: the input rows with NaN, one slice for each canvas.
        """
        x = torch.ones(len(nans), length, self.width, self.channels, dtype=torch.float64)
        for canvas, where in zip(x, nans, strict=True):
            canvas[where] = torch.nan
        x = x.transpose(1, 2) if self.axis else x  # (B, H, W, C)
        x = x if self.reads_channels_last else x.permute(0, 3, 1, 2)
        h = self.block(x.contiguous())
        h = h if self.gives_channels_last else h.permute(0, 2, 3, 1)
        return h.isnan().any(3).any(2 - self.axis)


def _window(probe: _Probe, own: int, across: int, largest: int) -> _Window | None:
    """The window found on one canvas, if a longer canvas confirms it.

    A dilated layer may read so far beyond a canvas that nothing shows on it; the longer canvas
    shows gaps of up to 96 rows. If padding depends on the size ("same" with a stride), it is the
    block's own padding only at sizes that differ from the block's own size by a multiple of the
    stride. Here they differ by a multiple of 16 or more.

    Args:
        probe: runs the block.
        own: the block's own size along the axis.
        across: its own size along the other axis.
        largest: the longest canvas to try.
    """
    length = 16
    while length <= largest:
        window = _first_that_runs(probe, own % 32 + length, across)
        if window is not None:
            if _confirmed(probe, own % 32 + max(128, 2 * length), window):
                return window
            length *= 2
        length *= 2
    return None


def _first_that_runs(probe: _Probe, length: int, across: int) -> _Window | None:
    """Search on the narrowest canvas that the block takes, which costs least."""
    for width in [probe.width] if probe.width else [2, 4, 8, 16, 32, 64, across, 2 * across]:
        if length * width > AREA:
            break
        probe.width = width
        try:
            return _search(probe, length)
        except Exception:  # any error of a block at a size that it does not take
            probe.width = 0
    return None


def _search(probe: _Probe, length: int) -> _Window | None:
    """The window of an output in the middle; None if a row at the border reaches it.

    Raises:
        ValueError: the canvas is too small.
    """
    everything, nothing = slice(None), slice(0)
    border = probe(length, [slice(0, 1), slice(length - 1, None), everything, nothing])
    o = border.shape[1] // 2
    *ends, reached, clean = border[:, o : o + 2]
    if clean.any() or not reached.all():
        raise ValueError("canvas too small: an output reads padding alone")
    if len(reached) < 2 or torch.stack(ends).any():
        return None
    # Three bisections at once, over the number of rows from the top: when do these rows reach o,
    # when do they reach o + 1, and when do the rows below them no longer reach o?
    few, enough = [0, 0, 0], [length, length, length]
    while any(a + 1 < b for a, b in zip(few, enough, strict=True)):
        cuts = [(a + b) // 2 for a, b in zip(few, enough, strict=True)]
        reached = probe(length, [slice(cuts[0]), slice(cuts[1]), slice(cuts[2], None)])
        for i, yes in enumerate((reached[0, o], reached[1, o + 1], ~reached[2, o])):
            (enough if yes else few)[i] = cuts[i]
    first, following, last = (rows - 1 for rows in enough)
    stride = following - first
    return _Window(last - first + 1, stride, first - stride * o)


def _confirmed(probe: _Probe, length: int, window: _Window) -> bool:
    """Whether two outputs far from each other read exactly what the window says."""
    if length * probe.width > AREA or window.size < 1 or window.stride < 1:
        return False
    try:
        outputs = probe(length, [slice(0)]).shape[1]
        return all(_reads(probe, length, o, window) for o in (outputs // 2, outputs * 3 // 4))
    except Exception:  # as in `_first_that_runs`: a block of one size only
        return False


def _reads(probe: _Probe, length: int, o: int, window: _Window) -> bool:
    """Whether output o reads exactly the rows of the window."""
    first = window.stride * o + window.start
    last = first + window.size - 1
    if first < 0 or last >= length:
        return False
    cuts = [slice(first), slice(first + 1), slice(last, None), slice(last + 1, None)]
    return probe(length, cuts)[:, o].tolist() == [False, True, True, False]


class _AsAtFirst(nn.Module):
    """Adaptive pooling, fixed to the windows of its first input if these are all alike."""

    def __init__(self, pooling: nn.Module):
        super().__init__()
        self.pooling = pooling
        self.window: tuple[int, ...] | None = None
        self.first = True

    def forward(self, h: Tensor) -> Tensor:
        if self.window is not None:
            return F.avg_pool2d(h, self.window)
        out = self.pooling(h)
        sides = list(zip(h.shape[-2:], out.shape[-2:], strict=True))
        if self.first and all(after > 1 and before % after == 0 for before, after in sides):
            self.window = tuple(before // after for before, after in sides)
        self.first = False
        return out


def _fix_adaptive_pooling(block: nn.Module, shape: Shape) -> None:
    """Fix a block's adaptive poolings to their windows on an input of this shape."""
    found = False
    for module in list(block.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
                setattr(module, name, _AsAtFirst(child))
                found = True
    if found:
        block(torch.ones(1, *shape, dtype=torch.float64))
