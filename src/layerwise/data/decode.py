"""Decoding encoded images (files, rows of a table) to pixels of one size."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from layerwise.errors import InputError, reason

GREY = ("1", "L")
CHUNK = 64  # images that a thread decodes at a time
# Others are refused: Pillow would run Ghostscript on an EPS file, whatever it is called.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000", "DIB", "ICO", "TGA")
LARGEST_PIXELS = 1 << 28  # of an image that is scaled as a whole before its centre is cut out
# Where Pillow keeps what may hold an orientation; of a TIFF, in its tags.
OF_EXIF = frozenset(("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))
THREADED_PIXELS = 96 * 96  # images from this size on are decoded by several threads


class Encoded(Protocol):
    """A list of encoded images."""

    def __len__(self) -> int: ...

    def open(self, i: int) -> Image.Image:
        """Image i; its header is read, its pixels are not decoded yet."""
        ...

    def where(self, i: int) -> str:
        """How an error names image i."""
        ...


class _ColourFound(Exception):
    """A coloured image was found in a set that looked grey."""


def identify(file: IO[bytes]) -> Image.Image:
    """Open an encoded image of one of the `FORMATS`; its header is read.

    Pillow finds the format by the content, whatever a file is called.
    """
    return Image.open(file, formats=FORMATS)


def pixels(source: Encoded, i: int) -> Image.Image:
    """Image i, decoded, upright, in mode L or RGB.

    Raises:
        InputError: the image cannot be read, or has more than 8 bits per channel.
    """
    try:
        image = source.open(i)
        image.load()
    except Exception as error:  # Pillow's decoders let through many kinds of errors
        raise InputError(
            f"data: {source.where(i)} cannot be read as an image ({reason(error)}); replace or "
            "remove it"
        ) from error
    if image.mode.startswith(("I", "F")):
        raise InputError(
            f"data: {source.where(i)} has pixels of mode {image.mode}, more than 8 bits per "
            "channel; convert it to 8 bits"
        )
    turn_upright(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if it is converted to RGB directly
    mode = "L" if image.mode in GREY else "RGB"
    return image if image.mode == mode else image.convert(mode)


def turn_upright(image: Image.Image) -> None:
    """Turn or mirror a decoded image, in place, as the orientation in its EXIF data says.

    An image whose EXIF data cannot be read stays as it is: viewers show it like this.
    """
    # Most images have none. Asking Pillow takes as long as decoding a few hundred pixels.
    if OF_EXIF.isdisjoint(image.info) and image.format != "TIFF":
        return
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def colour(image: Image.Image) -> Image.Image:
    """The same image in mode RGB."""
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` always copies


def fit(image: Image.Image, size: int, margin: float = 1.0) -> Image.Image:
    """Scale the shorter side to `size * margin` (antialiased bilinear), then cut out the centre.

    Returns:
        An image of `size` x `size` pixels.
    """
    width, height = image.size
    short = round(size * margin)
    scale = short / min(width, height)
    wide, tall = max(round(width * scale), size), max(round(height * scale), size)
    if wide * tall > LARGEST_PIXELS:
        # One pixel high and 65,000 wide, it would grow to gigabytes before its centre is cut out.
        side = size / scale
        left, top = (width - side) / 2, (height - side) / 2
        centre = (left, top, left + side, top + side)
        return image.resize((size, size), Image.Resampling.BILINEAR, box=centre)
    if (wide, tall) != (width, height):
        image = image.resize((wide, tall), Image.Resampling.BILINEAR)
    if (wide, tall) == (size, size):
        return image
    left, top = (wide - size) // 2, (tall - size) // 2
    return image.crop((left, top, left + size, top + size))


def decode(source: Encoded, size: int | None) -> Tensor:
    """Decode all images: uint8 0..255 (N, H, W, C), C = 1 if all are grey, otherwise 3.

    Args:
        source: the encoded images.
        size: height and width in pixels; None if all images have one size.

    Raises:
        InputError: an image cannot be read; `size` is None and the images differ in size.
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

    # Pillow releases the interpreter's lock while it decodes, so threads are enough, and they share
    # `out`. Small images are decoded so fast that threads would only wait for one another.
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
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
