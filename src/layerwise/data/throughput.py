"""The speed of a loader, without a network that consumes its batches."""

import time

import torch

from layerwise.data.loader import Loader


def throughput(loader: Loader, seconds: float = 2.0) -> float:
    """Images per second that a loader gives.

    One batch warms up. Epochs follow one another, so the result includes the cost of a new order.

    Args:
        loader: gives the batches.
        seconds: how long to measure, at least.
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
