"""The 8x8 digits that scikit-learn carries: no download, small enough for a first run."""

import torch

from layerwise.data.images import Images
from layerwise.data.splits import Parts


def digits() -> Parts:
    """1,797 grey 8x8 digits (UCI optdigits, test part); 16 levels spread over 0..255."""
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    found = load_digits()
    images = torch.from_numpy(found.images).mul(255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(found.target).long()
    whole = Images(images.unsqueeze(-1).contiguous(), labels)
    return Parts(whole, None, None, tuple(str(digit) for digit in range(10)))
