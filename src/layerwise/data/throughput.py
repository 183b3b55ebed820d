"""How fast batches come, without a network to eat them."""

import time

import torch

from layerwise.data.loader import Loader


def throughput(loader: Loader, seconds: float = 2.0) -> float:
    """Images per second that `loader` gives, over at least `seconds` after one batch of warm-up.

    Epochs follow one another, so that the cost of a new order is in the figure.
    """
    for _ in loader.epoch(0):
        break
    _wait(loader.device)
    began = time.perf_counter()
    images = epoch = 0
    while True:
        for _, y in loader.epoch(epoch):
            images += len(y)
            if time.perf_counter() - began >= seconds:
                _wait(loader.device)
                return images / (time.perf_counter() - began)
        epoch += 1


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
