"""The 8x8 digits that scikit-learn ships: no download, and small enough for a first run."""

import torch

from layerwise.data.images import Images
from layerwise.data.splits import Parts


def digits() -> Parts:
    """1,797 grey 8x8 digits (UCI optdigits, test part); 17 grey levels spread over 0..255."""
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    levels, target = load_digits(return_X_y=True)  # 0..16, one row of 64 per image
    images = torch.from_numpy(levels).mul(255 / 16).round().to(torch.uint8)
    whole = Images(images.view(-1, 8, 8, 1), torch.from_numpy(target).long())
    return Parts(whole, None, None, tuple(str(digit) for digit in range(10)))
