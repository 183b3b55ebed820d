"""From encoded images (files, rows of a table) to bytes of one size."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from layerwise.errors import InputError, reason

GREY = ("1", "L")
CHUNK = 64  # images a thread takes at a time
THREADED_PIXELS = 96 * 96  # from this size on


class Encoded(Protocol):
    """A list of images that are not decoded yet."""

    def __len__(self) -> int: ...

    def open(self, i: int) -> Image.Image:
        """Image i, its header read and its pixels not."""
        ...

    def where(self, i: int) -> str:
        """What to call image i in an error."""
        ...


class _ColourFound(Exception):
    """An image in colour, in a set that looked grey."""


def pixels(source: Encoded, i: int) -> Image.Image:
    """Image i, decoded, in mode L or RGB.

    Raises:
        InputError: it cannot be read, or has more than 8 bits a channel.
    """
    try:
        image = source.open(i)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"data: {source.where(i)} cannot be read as an image ({reason(error)}); replace or "
            "remove it"
        ) from error
    if image.mode.startswith(("I", "F")):
        raise InputError(
            f"data: {source.where(i)} has pixels of mode {image.mode}, more than 8 bits a channel; "
            "convert it to 8 bits"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    mode = "L" if image.mode in GREY else "RGB"
    return image if image.mode == mode else image.convert(mode)


def colour(image: Image.Image) -> Image.Image:
    """The same image in mode RGB."""
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


def fit(image: Image.Image, size: int, margin: float = 1.0) -> Image.Image:
    """The shorter side to `size * margin` (antialiased bilinear), then the central square."""
    width, height = image.size
    short = round(size * margin)
    scale = short / min(width, height)
    wide, tall = max(round(width * scale), size), max(round(height * scale), size)
    if (wide, tall) != (width, height):
        image = image.resize((wide, tall), Image.Resampling.BILINEAR)
    if (wide, tall) == (size, size):
        return image
    left, top = (wide - size) // 2, (tall - size) // 2
    return image.crop((left, top, left + size, top + size))


def decode(source: Encoded, size: int | None) -> Tensor:
    """All images, uint8 0..255 (N, H, W, C), with one channel where all are grey, else three.

    Args:
        size: height and width; None where all images have the same size already.

    Raises:
        InputError: an image that cannot be read, or sizes that differ while `size` is None.
    """
    first = pixels(source, 0)
    try:
        return _decode(source, size, first, grey=first.mode == "L")
    except _ColourFound:
        return _decode(source, size, first, grey=False)


def _decode(source: Encoded, size: int | None, first: Image.Image, grey: bool) -> Tensor:
    width, height = first.size if size is None else (size, size)
    out = torch.empty(len(source), height, width, 1 if grey else 3, dtype=torch.uint8)
    target = out.numpy()

    def chunk(start: int) -> None:
        for i in range(start, min(start + CHUNK, len(source))):
            image = pixels(source, i)
            if grey and image.mode != "L":
                raise _ColourFound
            if size is not None:
                image = fit(image, size)
            elif image.size != first.size:
                raise InputError(
                    f"data: images of different sizes, {width}x{height} ({source.where(0)}) and "
                    f"{image.size[0]}x{image.size[1]} ({source.where(i)}); give --data.size"
                )
            target[i] = np.asarray(image if grey else colour(image)).reshape(target[i].shape)

    # Pillow lets go of the interpreter while it decodes, so threads are enough and share `out`. Of
    # a small image the decoding is so short that threads only wait for one another.
    small = first.size[0] * first.size[1] < THREADED_PIXELS
    with ThreadPoolExecutor(1 if small else cores()) as pool:
        jobs = [pool.submit(chunk, start) for start in range(0, len(source), CHUNK)]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return out


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
