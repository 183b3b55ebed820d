"""The 8x8 digits that scikit-learn ships: no download, and small enough for a first run."""

import functools

import numpy as np
import torch

from layerwise.data.images import Images
from layerwise.data.splits import Parts


def digits() -> Parts:
    """1,797 grey 8x8 digits (UCI optdigits, test part); 17 grey levels spread over 0..255."""
    levels, target = _read()
    images = torch.from_numpy(levels).mul(255 / 16).round().to(torch.uint8)
    whole = Images(images.view(-1, 8, 8, 1), torch.from_numpy(target).clone())
    return Parts(whole, None, None, tuple(str(digit) for digit in range(10)))


@functools.cache
def _read() -> tuple[np.ndarray, np.ndarray]:
    """The grey levels, 0..16, one row of 64 for each image; and the digits, int64."""
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    levels, target = load_digits(return_X_y=True)
    return np.asarray(levels), np.asarray(target, np.int64)
