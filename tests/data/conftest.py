"""Small sets on disk, and the hub's cache out of the way."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from layerwise.data import Images


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_waiting_for_a_network(monkeypatch):
    """Whatever asks for an address is told that there is none."""
    import socket

    def refuse(*_, **__):
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def noise() -> Callable[..., Images]:
    """A set of random bytes: `noise(count, height, width, channels)`."""

    def make(count=20, height=8, width=8, channels=3, classes=5) -> Images:
        generator = torch.Generator().manual_seed(3)
        images = torch.randint(
            256, (count, height, width, channels), dtype=torch.uint8, generator=generator
        )
        return Images(images, torch.arange(count) % classes)

    return make


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    """uint8 (height, width, 3), decided by `number`."""

    def make(number: int, height=6, width=6) -> np.ndarray:
        return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture
def class_folders(picture) -> Callable[..., Path]:
    """Write PNG `i` of class c at `place/c/i.png`, showing picture(100 * c + i)."""

    def make(place: Path, classes=("ant", "bee"), count=5, height=6, width=6) -> Path:
        for c, name in enumerate(classes):
            (place / name).mkdir(parents=True)
            for i in range(count):
                shown = Image.fromarray(picture(100 * c + i, height, width))
                shown.save(place / name / f"{i}.png")
        return place

    return make
